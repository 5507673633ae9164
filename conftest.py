def pytest_collection_modifyitems(items):
    """Put notebooks after the tests, each one's cells in their order: pytest-randomly has shuffled them."""
    items.sort(key=lambda item: (str(item.path), item.cell_num) if hasattr(item, "cell_num") else ("", 0))
