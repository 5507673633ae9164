from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=10_000)


def pytest_addoption(parser):
    parser.addoption(
        "--thorough", action="store_true", help="fuzz and soak 50 to 100 times as long, break real vLLM too"
    )


def pytest_configure(config):
    settings.load_profile("thorough" if config.getoption("thorough") else "suite")
