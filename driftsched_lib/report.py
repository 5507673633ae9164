"""From a results folder to executed notebooks and one page: findings, each with its figure, details, provenance."""

from base64 import b64encode
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import papermill
from matplotlib.figure import Figure
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell
from tqdm.auto import tqdm

from driftsched_lib import figures, results
from driftsched_lib.params import Params
from driftsched_lib.results import write_text
from driftsched_lib.scorecard import completed_requests, scorecard

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SHOWN_BY = {
    "C2": (figures.estimation_error, Params.estimate_runs),
    "C4": (figures.change_against_fifo, Params.policy_runs),
    "C5": (figures.e2e_tails, Params.policy_runs),
    "C6": (figures.bias_over_time, Params.estimate_runs),
    "C7": (figures.job_class_mistakes, Params.estimate_runs),
}
"""By claim, the figure that comes after it, and the part of the grid that it shows."""


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
    write_report(findings(out), [out / f"{name}.ipynb" for name in notebooks], provenance(out), out / "report.html")


def findings(out: Path) -> list[nbformat.NotebookNode]:
    """What the runs say of the paper's claims, a cell a claim, with its figure."""
    params, done = Params.load(out / "params.yaml"), completed_requests(out)
    rulings = scorecard(done)
    figures.use_style()
    cells = [new_markdown_cell("## What these runs say of the paper's claims")]
    for (claim, statement), part in rulings.groupby(["claim", "statement"], sort=False):
        lines = [f"### {claim}: {statement}", ""]
        lines += [
            f"- {row.setting}: **{row.verdict}**, {row.here} (the paper: {row.paper})" for row in part.itertuples()
        ]
        lines += ["", "Why: " + ". ".join(why[0].upper() + why[1:] for why in part.why.drop_duplicates()) + ".", ""]
        cell = new_markdown_cell("\n".join(lines))
        if claim in SHOWN_BY:
            draw, part_of = SHOWN_BY[claim]
            figure = draw(done[done.run.isin([run.name for run in part_of(params)])])
            cell.source += f"\n![{statement}](attachment:{claim}.png)"
            cell.attachments = {f"{claim}.png": {"image/png": _png(figure)}}
        cells.append(cell)
    return cells


def provenance(out: Path) -> nbformat.NotebookNode:
    """Where the results come from, as a cell: engine, load, seeds, versions, hardware, commit, time."""
    params, manifests = Params.load(out / "params.yaml"), [*map(results.load_manifest, results.run_folders(out))]
    hardware = {", ".join(f"{key} {value}" for key, value in m["hardware"].items()) for m in manifests}
    versions = {", ".join(f"{package} {version}" for package, version in m["versions"].items()) for m in manifests}
    rows = {
        "engine": f"{params.engine}, {params.model}, {params.engine_args}",
        "runs": f"{len(manifests)} of {params.requests} requests, seeds {', '.join(map(str, params.seeds))}",
        "parameters": "params.yaml beside this page",
        "hardware": "; ".join(sorted(hardware)),
        "versions": "; ".join(sorted(versions)),
        "commit": ", ".join(sorted({str(m["git_commit"]) for m in manifests})),
        "served": f"{min(m['started'] for m in manifests)} to {max(m['finished'] for m in manifests)}",
    }
    table = pd.Series(rows).to_frame("").to_html(header=False, border=0)
    return new_markdown_cell(f"## Provenance\n\n{table}")


def _png(figure: Figure) -> str:
    image = BytesIO()
    figure.savefig(image, format="png")
    plt.close(figure)
    return b64encode(image.getvalue()).decode()


def write_report(
    findings: list[nbformat.NotebookNode], notebooks: list[Path], provenance: nbformat.NotebookNode, path: Path
) -> None:
    """One HTML page that needs no network: findings, the notebooks' prose and outputs, provenance."""
    details = [cell for notebook in notebooks for cell in nbformat.read(notebook, as_version=4).cells]
    leads = [cell.source.splitlines()[0] for cell in details if cell.cell_type == "markdown"]
    titles = [lead.removeprefix("# ") for lead in leads if lead.startswith("# ")]
    contents = ["- [What these runs say of the paper's claims](#What-these-runs-say-of-the-paper's-claims)"]
    contents += [f"- [{title}](#{title.replace(' ', '-')})" for title in titles]
    contents += ["- [Provenance](#Provenance)"]
    lead = new_markdown_cell("\n".join(["# DriftSched: the paper's experiment", "", *contents]))
    page = nbformat.v4.new_notebook(metadata={"title": "DriftSched"}, cells=[lead, *findings, *details, provenance])
    exporter = HTMLExporter(exclude_input=True, exclude_output_prompt=True, mathjax_url="", require_js_url="")
    write_text(path, exporter.from_notebook_node(page)[0])
