"""Imports point down: the core knows no engine, and only the vLLM engine knows vLLM."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "driftsched_lib"
MODULES = sorted(PACKAGE.rglob("*.py"))
CORE = ("admission", "checks", "requests", "tokens", "classify", "estimators", "policies", "scheduler", "serving")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


CLOCKS_FILES_AND_ENGINES = {"pandas", "vllm", "torch", "transformers"} | {
    "time",
    "datetime",
    "os",
    "pathlib",
    "io",
    "subprocess",
}
CORE_FILES = [path for path in MODULES if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in CORE]


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_core_knows_the_core_and_no_clock(path):
    outside = [module for module in imports(path) if module.startswith("driftsched_lib.")]
    assert {module.split(".")[1] for module in outside} <= set(CORE)
    assert not CLOCKS_FILES_AND_ENGINES & {module.split(".")[0] for module in imports(path)}


def test_only_the_vllm_rooms_import_vllm():
    importers = {path.stem for path in MODULES if any(module.split(".")[0] == "vllm" for module in imports(path))}
    assert "vllm_local" in importers and importers <= {"vllm_local", "vllm_plugin"}


def test_engines_import_no_experiment():
    for path in (PACKAGE / "engines").glob("*.py"):
        assert not {"experiment", "run", "engine_setup", "results", "params"} & {
            module.split(".")[1] for module in imports(path) if "." in module
        }


def rooms(path):
    """The modules of the package that a module imports as it is loaded, not only once a function of it runs."""
    body = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{alias.name}" for node in body for alias in node.names} | {node.module for node in body}
    return {NAMES[name] for name in names if name in NAMES} - {path}


NAMES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES
}


def test_imports_go_down_only():
    try:
        tuple(TopologicalSorter({path: rooms(path) for path in MODULES}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(path.stem for path in error.args[1]))


@pytest.mark.parametrize("name", ["metrics", "service_metrics", "comparison"])
def test_measures_need_no_engine(name):
    outside = {
        module.split(".")[1] for module in imports(PACKAGE / f"{name}.py") if module.startswith("driftsched_lib.")
    }
    assert not outside & {"engines", "experiment", "run", "engine_setup", "figures", "params"}


def test_what_serves_requests_knows_no_study():
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in MODULES
        if any(module.startswith("driftsched_lib.studies") for module in imports(path))
    }
    assert importers == {"__main__.py", "bench", "figures", "report.py", "studies"}
