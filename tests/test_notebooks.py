"""Notebooks are functions of the one cell that papermill finds by its tag."""

import nbformat
import pytest

from driftsched_lib.validation import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_one_cell_holds_the_parameters(path):
    cells = nbformat.read(path, as_version=4).cells
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    assert path.stat().st_size < 1.5e6
    assert all(tag.isidentifier() or "-" in tag for cell in cells for tag in cell.metadata.get("tags", []))
