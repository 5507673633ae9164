"""Each notebook has one cell of parameters, and its smoke copy differs in nothing but them."""

import nbformat
import pytest
from smoke_notebooks import PARAMETERS, copy_notebook

from driftsched_lib.validation import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_one_cell_holds_the_parameters_and_a_smoke_copy_has_one_more(path, tmp_path):
    copied = copy_notebook(path.stem, tmp_path)
    cells, original = (nbformat.read(notebook, as_version=4).cells for notebook in (copied, path))
    tags = [tag for cell in original for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") == 1 and all(tag.isidentifier() or "-" in tag for tag in tags)
    assert path.stat().st_size < 1.5e6
    assert [c.source for c in cells if "injected-parameters" not in c.metadata.tags] == [c.source for c in original]
    assert len(cells) - len(original) == (path.stem in PARAMETERS)
    assert (copied.parent / "../params/smoke.yaml").exists() and (copied.parent / "../data").exists()


def test_a_parameter_that_a_notebook_lacks_is_refused_and_every_smoke_copy_has_its_notebook(tmp_path):
    assert set(PARAMETERS) <= {path.stem for path in NOTEBOOKS}
    with pytest.raises(ValueError, match="00_start_here.ipynb: no parameter is called request"):
        copy_notebook("00_start_here", tmp_path, {"request": 1})
