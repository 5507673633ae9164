"""From a results folder to executed notebooks and one page: claims, their figure, notebooks, provenance.

The page needs no network and runs no script: the policy in the head of `report.html` forbids both.
"""

from base64 import b64encode
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import papermill
from matplotlib.figure import Figure
from nbconvert import HTMLExporter

from driftsched_lib import figures
from driftsched_lib.experiments import results
from driftsched_lib.studies.compare import select
from driftsched_lib.studies.scorecard import CLOSE_TO_THE_PAPER, completed_requests, scorecard
from driftsched_lib.validation import PROJECT

RULES = (
    "Reproduced: the 95% interval (in brackets) excludes zero on the paper's side, and the estimate is in the band, "
    f"{CLOSE_TO_THE_PAPER:.0%} around the paper's number. Direction only: the estimate is outside. A wide interval "
    "never helps. Intervals are Student's over seeds. Of one run alone they are conditional on that run, and say so."
)


def execute_notebooks(out: str | Path) -> None:
    """Execute notebooks 01 to 03 on a results folder; leave them and `report.html` in it."""
    out, notebooks = Path(out).resolve(), PROJECT / "notebooks"
    experiment = {"params_file": str(out / "params.yaml"), "out": str(out)}
    executed = {"01_calibration": experiment, "02_scheduler_comparison": experiment, "03_figures": {"runs": str(out)}}
    for name, parameters in executed.items():
        paths = str(notebooks / f"{name}.ipynb"), str(out / f"{name}.ipynb")
        papermill.execute_notebook(*paths, parameters=parameters, cwd=str(notebooks), progress_bar=False)
    write_report(out, [out / f"{name}.ipynb" for name in executed], out / "report.html")


def write_report(out: Path, notebooks: list[Path], path: Path) -> None:
    """Write one HTML page about the runs in `out`, with notebooks that were executed on them."""
    figures.use_style()
    done, compared = completed_requests(out), [run.name for run in results.load_params(out).policy_runs()]
    rulings, first = scorecard(done), done.estimator.iloc[0]
    sections = {
        "Scorecard": _table(rulings, index=False) + f"<p>{RULES if len(rulings) else 'No claim can be ruled on.'}</p>",
        "Latency": _picture(figures.change_against_fifo(select(done[done.run.isin(compared)], estimator=first))),
        "Notebooks": "\n".join(map(_folded, notebooks)),
        "Provenance": _provenance(out),
    }
    body = "\n".join(f'<h2 id="{title.lower()}">{title}</h2>\n{section}' for title, section in sections.items())
    page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    results.write_text(path, page.substitute(body=body))


def _picture(figure: Figure, alt: str = "Change of E2E against FIFO, by policy") -> str:
    figure.savefig(image := BytesIO(), format="png")
    plt.close(figure)
    source = f"data:image/png;base64,{b64encode(image.getvalue()).decode()}"
    return f'<div class="wide"><img alt="{alt}" src="{source}"></div>'


def _provenance(out: Path) -> str:
    """Return runs, time, commit, hardware, versions and parameters as HTML."""
    runs = pd.DataFrame([run.manifest for run in results.runs(out)])
    rows = pd.Series({"runs": f"{len(runs)}, from {runs.started.min()} to {runs.finished.max()}"})
    for key in runs.columns.intersection(["git_commit", "uncommitted_changes", "hardware", "versions"]):
        rows[key] = "; ".join(runs[key].astype(str).str.replace("[{}']", "", regex=True).unique())
    table = _table(rows.to_frame(), header=False, classes="provenance")
    yaml = escape((out / "params.yaml").read_text(encoding="utf-8"))
    return f"{table}\n<details><summary>Parameters: params.yaml</summary><pre>{yaml}</pre></details>"


def _table(frame: pd.DataFrame, **options: object) -> str:
    with pd.option_context("display.max_colwidth", None):
        return f'<div class="wide">{frame.to_html(border=0, **options)}</div>'


def _folded(path: Path) -> str:
    """Return a notebook's prose and outputs under its title; each picture's alt text is the heading above it."""
    notebook = nbformat.read(path, as_version=4)
    title = heading = path.stem
    for cell in notebook.cells:
        cell.id = f"{path.stem}-{cell.id}"[:64]  # ids are unique in a notebook, and have to be on the page
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            heading, _, text = cell.source.partition("\n")
            if heading.startswith("# "):
                title, cell.source = heading.removeprefix("# "), text
        cell.metadata["alt"] = heading.lstrip("# ")
    shown = {"exclude_input": True, "exclude_output_prompt": True, "exclude_anchor_links": True}
    html, _ = HTMLExporter(template_name="basic", **shown).from_notebook_node(notebook)
    return f"<details><summary>{escape(title)}</summary>{html}</details>"
