"""DESIGN's rules on imports and sizes, held by reading the source: imports inside functions count as well."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "driftsched_lib"
FILES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}
CORE = ["errors validation requests", "policies estimators", "scheduler serving admission classify tokens"]
WINGS = ["vllm_plugin", "engines", "workloads", "experiments", "studies", "figures", "explorer __main__ __init__"]
LAYERS = [set(layer.split()) for layer in (*CORE, *WINGS)]
FILE_READERS = {"validation", "estimators.state", "classify"}  # the last has its weights beside it
CLOCKS_FILES_AND_ENGINES = {"time", "datetime", "os", "pathlib", "io", "subprocess"}
CLOCKS_FILES_AND_ENGINES |= {"pandas", "vllm", "torch", "transformers"}
NO_MEASURE_NEEDS = {"engines", "workloads", "figures", "experiments.run", "experiments.grid", "experiments.params"}


def wing(name):
    return name.split(".")[0]


def imports(name):
    """Return the modules of the package that a module imports, and the packages outside."""
    nodes = list(ast.walk(ast.parse(SOURCES[name].read_text())))
    assert not any(getattr(node, "level", 0) for node in nodes), f"{name} imports by a relative name"
    full = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    full += [f"{node.module}.{a.name}" for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names]
    own = {path.partition(".")[2] for path in full if path.startswith("driftsched_lib")}
    own = {path if path in SOURCES else path.rpartition(".")[0] for path in own}
    return own - {name}, {wing(path) for path in full} - {"driftsched_lib"}


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_down(name):
    [rank] = [rank for rank, wings in enumerate(LAYERS) if wing(name) in wings]
    assert {wing(module) for module in imports(name)[0]} <= set.union(*LAYERS[: rank + 1])


def test_no_module_imports_itself_by_way_of_others_and_only_engine_and_plugin_import_vllm():
    tuple(TopologicalSorter({name: imports(name)[0] for name in SOURCES}).static_order())  # or an error names them
    importers = {name for name in SOURCES if "vllm" in imports(name)[1]}
    assert {name for name in importers if wing(name) != "vllm_plugin"} == {"engines.vllm"}


@pytest.mark.parametrize("name", [n for n in SOURCES if wing(n) in " ".join(CORE).split() and n not in FILE_READERS])
def test_the_core_has_no_clock_no_files_and_no_engine(name):
    assert not imports(name)[1] & CLOCKS_FILES_AND_ENGINES


@pytest.mark.parametrize("name", ["experiments.metrics", "studies.compare"])
def test_measures_need_no_engine_and_no_experiment(name):
    own, _ = imports(name)
    assert not (own | {wing(module) for module in own}) & NO_MEASURE_NEEDS


def test_files_are_short_and_few_in_the_root():
    assert len(list(PACKAGE.glob("*.py"))) <= 1 + 10  # beside __init__.py
    assert max(len(path.read_text().splitlines()) for path in SOURCES.values()) <= 400
