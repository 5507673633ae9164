import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=10_000)


def pytest_addoption(parser):
    parser.addoption(
        "--thorough", action="store_true", help="fuzz and soak 50 to 100 times as long, break real vLLM too"
    )


def pytest_configure(config):
    settings.load_profile("thorough" if config.getoption("thorough") else "suite")


@pytest.fixture(scope="session")
def server():
    """The URL of a real vLLM server with the embedded model, scheduled by the plug-in as `params/plugin.yaml` says."""
    from driftsched_lib.vllm_process import serve_vllm

    arguments = ["--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "8"]
    arguments += ["--scheduler-cls", "driftsched_lib.vllm_plugin.DriftSchedScheduler"]
    with serve_vllm("data/models/driftsched-tiny", *arguments, env={"DRIFTSCHED_CONFIG": "params/plugin.yaml"}) as url:
        yield url
