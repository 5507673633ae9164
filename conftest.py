"""How notebooks are tested: after the other tests, each one's cells in their order, with parameters that take seconds."""

import tempfile

SMOKE = {
    "params_file": "../params/smoke.yaml",
    "out": tempfile.mkdtemp(prefix="driftsched-"),
    "samples": 60,
}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (str(item.path), item.cell_num) if hasattr(item, "cell_num") else ("", 0))
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is not None and "parameters" in cell.metadata.get("tags", []):
            given = {name: value for name, value in SMOKE.items() if f"{name} =" in cell.source}
            if "params_file" in given or "samples" in given:
                cell.source += "".join(f"\n{name} = {value!r}" for name, value in given.items())
