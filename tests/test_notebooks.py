"""Each notebook has one cell of parameters, and its smoke copy differs in nothing but them."""

import nbformat
import pytest
from smoke_notebooks import PARAMETERS, copy_notebook

from driftsched_lib.validation import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_one_cell_holds_the_parameters(path):
    cells = nbformat.read(path, as_version=4).cells
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    assert path.stat().st_size < 1.5e6
    assert all(tag.isidentifier() or "-" in tag for cell in cells for tag in cell.metadata.get("tags", []))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_smoke_copy_has_one_cell_more(path, tmp_path):
    copied = copy_notebook(path.stem, tmp_path)
    cells, original = (nbformat.read(notebook, as_version=4).cells for notebook in (copied, path))
    assert [c.source for c in cells if "injected-parameters" not in c.metadata.tags] == [c.source for c in original]
    assert len(cells) - len(original) == (path.stem in PARAMETERS)
    assert (copied.parent / "../params/smoke.yaml").exists() and (copied.parent / "../data").exists()


def test_a_parameter_that_a_notebook_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="00_start_here.ipynb: no parameter is called request"):
        copy_notebook("00_start_here", tmp_path, {"request": 1})


def test_every_smoke_copy_has_its_notebook():
    assert set(PARAMETERS) <= {path.stem for path in NOTEBOOKS}
