"""Imports point down: the core knows no engine, and only the vLLM engine knows vLLM."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "driftsched_lib"
MODULES = sorted(PACKAGE.rglob("*.py"))
CORE = ("admission", "requests", "tokens", "classify", "estimators", "policies", "scheduler", "serving")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


CLOCKS_AND_ENGINES = {"pandas", "vllm", "torch", "transformers", "pydantic", "time", "os"}
CORE_FILES = [path for path in MODULES if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in CORE]


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_core_knows_the_core_and_no_clock(path):
    outside = [module for module in imports(path) if module.startswith("driftsched_lib.")]
    assert {module.split(".")[1] for module in outside} <= set(CORE)
    assert not CLOCKS_AND_ENGINES & {module.split(".")[0] for module in imports(path)}


def test_only_the_vllm_rooms_import_vllm():
    importers = {path.stem for path in MODULES if any(module.split(".")[0] == "vllm" for module in imports(path))}
    assert "vllm_local" in importers and importers <= {"vllm_local", "vllm_plugin"}


def test_engines_import_no_experiment():
    for path in (PACKAGE / "engines").glob("*.py"):
        assert not {"experiment", "results", "params"} & {
            module.split(".")[1] for module in imports(path) if "." in module
        }
