"""Copy the notebooks with parameters of seconds, so that `pytest --nbval-lax FOLDER` runs them cell by cell.

`python tests/smoke_notebooks.py FOLDER` writes `FOLDER/notebooks`, and beside it links to `data` and `params`.  So
relative paths mean what they mean in the project.
"""

import shutil
import sys
from pathlib import Path

import yaml
from papermill.inspection import inspect_notebook
from papermill.iorw import load_notebook_node, write_ipynb
from papermill.parameterize import parameterize_notebook

PROJECT = Path(__file__).parents[1]
PARAMETERS = yaml.safe_load((PROJECT / "tests" / "smoke.yaml").read_text())


def copy_notebook(name: str, folder: Path, parameters: dict | None = None) -> Path:
    """Write a notebook with its smoke parameters, and these laid over them, to `folder`/notebooks; return its path.

    Raises:
        ValueError: the notebook has no parameter of such a name.
    """
    original, copy = PROJECT / "notebooks" / f"{name}.ipynb", folder / "notebooks" / f"{name}.ipynb"
    parameters = PARAMETERS.get(name, {}) | (parameters or {})
    if unknown := parameters.keys() - inspect_notebook(original).keys():
        raise ValueError(f"{original.name}: no parameter is called {', '.join(sorted(unknown))}")
    copy.parent.mkdir(parents=True, exist_ok=True)
    for shared in ("data", "params"):
        if not (folder / shared).exists():
            (folder / shared).symlink_to(PROJECT / shared)
    notebook = load_notebook_node(str(original))
    write_ipynb(parameterize_notebook(notebook, parameters) if parameters else notebook, str(copy))
    return copy


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for old in ("notebooks", "runs"):  # finished runs would not be run again
        shutil.rmtree(folder / old, ignore_errors=True)
    for notebook in (PROJECT / "notebooks").glob("*.ipynb"):
        copy_notebook(notebook.stem, folder)
