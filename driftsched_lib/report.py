"""From a results folder to executed notebooks and one page that holds them."""

from pathlib import Path

import nbformat
import papermill
from nbconvert import HTMLExporter
from tqdm.auto import tqdm

from driftsched_lib.results import write_text

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def execute_notebooks(out: str | Path) -> None:
    """Execute notebooks 01 to 03 on a results folder; they and `report.html` are left in it."""
    out = Path(out).resolve()
    experiment = {"params_file": str(out / "params.yaml"), "out": str(out)}
    notebooks = {"01_calibration": experiment, "02_scheduler_comparison": experiment, "03_figures": {"runs": str(out)}}
    for name, parameters in tqdm(notebooks.items(), desc="notebooks", unit="notebook", leave=False):
        papermill.execute_notebook(
            NOTEBOOKS / f"{name}.ipynb",
            out / f"{name}.ipynb",
            parameters=parameters,
            cwd=str(NOTEBOOKS),
            progress_bar=False,
        )
    write_report([out / f"{name}.ipynb" for name in notebooks], out / "report.html")


def write_report(notebooks: list[Path], path: Path) -> None:
    """One HTML page of the notebooks' prose and outputs, pictures embedded, that needs no network."""
    cells = [cell for notebook in notebooks for cell in nbformat.read(notebook, as_version=4).cells]
    leads = [cell.source.splitlines()[0] for cell in cells if cell.cell_type == "markdown"]
    titles = [lead.removeprefix("# ") for lead in leads if lead.startswith("# ")]
    contents = [f"- [{title}](#{title.replace(' ', '-')})" for title in titles]
    lead = nbformat.v4.new_markdown_cell(
        "\n".join(["# DriftSched: the paper's experiment on real vLLM", "", *contents])
    )
    page = nbformat.v4.new_notebook(metadata={"title": "DriftSched"}, cells=[lead, *cells])
    exporter = HTMLExporter(exclude_input=True, exclude_output_prompt=True, mathjax_url="", require_js_url="")
    write_text(path, exporter.from_notebook_node(page)[0])
