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
from driftsched_lib.studies.scorecard import CLOSE_TO_THE_PAPER, completed_requests, scorecard
from driftsched_lib.validation import PROJECT


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
    done, params = completed_requests(out), results.load_params(out)
    compared = done[done.run.isin([run.name for run in params.policy_runs()])]
    rulings, seeds = scorecard(done), done.seed.nunique()
    page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).substitute(
        basis=f"{params.requests} requests per run, {seeds} seed{'s' * (seeds > 1)}. {escape(figures.basis(out))}",
        scorecard=_headlines(rulings) if len(rulings) else "<p>No claim can be ruled on.</p>",
        latency=_picture(figures.change_against_fifo(compared)),
        settings=_table(rulings, index=False),
        band=f"{CLOSE_TO_THE_PAPER:.0%}",
        notebooks="\n".join(map(_folded, notebooks)),
        provenance=_provenance(out),
        params=escape((out / results.PARAMS).read_text(encoding="utf-8")),
    )
    results.write_text(path, page)


def _headlines(rulings: pd.DataFrame) -> str:
    """Return a row per claim in its first setting, the paper's own where it was run, with one sentence why."""
    rows = rulings.drop_duplicates("claim")
    why = rows.why.str.partition(";")[0]
    rows = rows.assign(paper=rows.paper.str.partition(" (")[0], why=why.str[0].str.upper() + why.str[1:] + ".")
    headings = {"statement": "the paper says", "paper": "its number", "here": "here, 95% interval", "why": "why here"}
    return _table(rows.rename(columns=headings), index=False)


def _picture(figure: Figure, alt: str = "Change of E2E against FIFO, by policy") -> str:
    figure.savefig(image := BytesIO(), format="png")
    plt.close(figure)
    source = f"data:image/png;base64,{b64encode(image.getvalue()).decode()}"
    return f'<div class="wide"><img alt="{alt}" src="{source}"></div>'


def _provenance(out: Path) -> str:
    runs = pd.DataFrame([run.manifest for run in results.runs(out)])
    rows = {"runs": f"{len(runs)}, from {runs.started.min()} to {runs.finished.max()}"}
    for key in runs.columns.intersection(["git_commit", "uncommitted_changes", "hardware", "versions"]):
        rows[key] = "; ".join(runs[key].astype(str).str.replace("[{}']", "", regex=True).unique())
    return _table(pd.DataFrame.from_dict(rows, orient="index"), header=False, classes="provenance")


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
