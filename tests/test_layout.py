"""Imports point down: the core knows no engine, and only the vLLM engine knows vLLM."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "driftsched_lib"
MODULES = sorted(PACKAGE.rglob("*.py"))
CORE = ("requests", "tokens", "classify", "estimators", "policies", "scheduler", "serving")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_the_core_and_the_standard_library(name):
    outside = [module for module in imports(PACKAGE / f"{name}.py") if module.startswith("driftsched_lib.")]
    assert {module.split(".")[1] for module in outside} <= set(CORE)
    third_party = {"numpy", "pandas", "vllm", "torch", "transformers", "pydantic", "time", "os", "pathlib"}
    assert not third_party & {module.split(".")[0] for module in imports(PACKAGE / f"{name}.py")}


def test_only_the_vllm_rooms_import_vllm():
    importers = {path.stem for path in MODULES if any(module.split(".")[0] == "vllm" for module in imports(path))}
    assert "vllm_local" in importers and importers <= {"vllm_local", "vllm_plugin"}


def test_engines_import_no_experiment():
    for path in (PACKAGE / "engines").glob("*.py"):
        assert not {"experiment", "results", "params"} & {
            module.split(".")[1] for module in imports(path) if "." in module
        }
