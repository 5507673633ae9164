"""From a results folder to executed notebooks and one page: findings, each with its figure, scorecard, provenance."""

from base64 import b64encode
from html import escape
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import papermill
from matplotlib.figure import Figure
from nbconvert import HTMLExporter
from tqdm.auto import tqdm

from driftsched_lib import figures
from driftsched_lib.experiments import results
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.results import write_text
from driftsched_lib.studies.compare import select
from driftsched_lib.studies.scorecard import (
    CLOSE_TO_ONE,
    CLOSE_TO_THE_PAPER,
    DIRECTION_ONLY,
    NOT_REPRODUCED,
    REPRODUCED,
    completed_requests,
    scorecard,
)

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
FINDINGS = {
    "The error of the estimates": (("C1", "C2"), figures.estimation_error, Params.estimate_runs),
    "Latency by scheduler": (("C3", "C4"), figures.change_against_fifo, Params.policy_runs),
    "Scheduler or calibration": (("C5",), figures.e2e_tails, Params.policy_runs),
    "The bias as it learns": (("C6",), figures.bias_over_time, Params.estimate_runs),
    "The job class": (("C7",), figures.job_class_mistakes, Params.estimate_runs),
}
"""By title, the claims that one figure shows, the figure, and the part of the grid in it."""
OUTCOMES = (
    "reproduced in every setting",
    "reproduced in some settings",
    "right in direction only, in some or all settings",
    "not reproduced in any setting",
)
CHANGES = {
    "C1": "Calibration changes the MAE of the estimates by",
    "C3": "SJF changes P50 E2E against FIFO by",
    "C4": "SJF changes P99 E2E against FIFO by",
}
"""By claim, how the summary words its numbers."""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>DriftSched</title>
<style>
body {{ max-width: 60rem; margin: auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #222 }}
h1, h2, h3 {{ line-height: 1.2 }}
h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #ccc }}
.wide, .output_subarea, .text_cell_render {{ overflow-x: auto }}
img {{ min-width: 640px; max-width: 100% }}
figure {{ margin: 1rem 0 }}
figcaption {{ font-size: 0.85rem; color: #555 }}
table {{ border-collapse: collapse; font-size: 0.85rem }}
th, td {{ padding: 0.25rem 0.6rem; border: 0; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }}
.wide .dataframe th {{ text-align: left }}
.wide table:not(.provenance) {{ min-width: 640px }}
.provenance td {{ overflow-wrap: anywhere }}
summary {{ padding: 0.4rem 0; cursor: pointer; font-weight: bold }}
details h2 {{ font-size: 1.1rem; border: 0 }}
pre {{ overflow-x: auto; font-size: 0.8rem }}
</style>
</head>
<body>
<h1>DriftSched: the paper's experiment</h1>
{body}
</body>
</html>
"""
"""No script, and nothing from elsewhere: the policy in its head forbids both, whatever a notebook put out."""


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
    write_report(out, [out / f"{name}.ipynb" for name in notebooks], out / "report.html")


def write_report(out: Path, notebooks: list[Path], path: Path) -> None:
    """One HTML page that needs no network, of the runs in `out` and of notebooks executed on them."""
    params, done = Params.load(out / "params.yaml"), completed_requests(out)
    rulings = scorecard(done)
    sections = {
        "Summary": summary(params, done, rulings),
        "Findings": findings(params, done, rulings),
        "Scorecard": _table(rulings[["claim", "setting", "verdict", "here", "paper", "statement"]], index=False),
        "Notebooks": "\n".join(map(_details, notebooks)),
        "Provenance": provenance(out),
    }
    body = "\n".join(f'<h2 id="{title.lower()}">{title}</h2>\n{section}' for title, section in sections.items())
    write_text(path, PAGE.format(body=body))


def summary(params: Params, done: pd.DataFrame, rulings: pd.DataFrame) -> str:
    """What the scorecard comes to, in a paragraph of HTML."""
    outcomes = rulings.groupby("claim").verdict.agg(_outcome)
    ruled = [
        f"{', '.join(outcomes.index[outcomes == outcome])} {outcome}"
        for outcome in OUTCOMES
        if outcome in set(outcomes)
    ]
    sentences = [
        f"{done.run.nunique()} runs of {params.requests:,} requests each, on {params.engine}, {params.model}",
        f"The paper's claims: {'; '.join(ruled) or 'none can be ruled on'}",
    ]
    for claim, wording in CHANGES.items():
        changes = [f"{row.here.split()[0]} ({row.setting})" for row in select(rulings, claim=claim).itertuples()]
        sentences += [f"{wording} {', '.join(changes)}"] if changes else []
    return f"<p>{escape('. '.join(sentences))}.</p>"


def _outcome(verdicts: pd.Series) -> str:
    """A claim's verdicts under all settings as one of `OUTCOMES`."""
    everywhere, somewhere, direction, nowhere = OUTCOMES
    if (verdicts == REPRODUCED).all():
        return everywhere
    if (verdicts == REPRODUCED).any():
        return somewhere
    return direction if (verdicts == DIRECTION_ONLY).any() else nowhere


def findings(params: Params, done: pd.DataFrame, rulings: pd.DataFrame) -> str:
    """What the runs say of the paper's claims, as HTML: claims that one figure shows stand under one title."""
    figures.use_style()
    ruled_on = select(done, estimator=done.estimator.iloc[0])
    parts = [
        f"<p>C1 to C4 are <b>{REPRODUCED}</b> if the change surely has the paper's sign, and is within "
        f"{CLOSE_TO_THE_PAPER:.0%} of the paper's number or has an interval that holds it; <b>{DIRECTION_ONLY}</b> if "
        f"it surely has that sign. C5 and C7 are <b>{REPRODUCED}</b> if the difference surely has the paper's sign; "
        f"<b>{DIRECTION_ONLY}</b> if the estimate has it. C6 is <b>{REPRODUCED}</b> if the distance is surely below "
        f"{CLOSE_TO_ONE}. Else they are <b>{NOT_REPRODUCED}</b>. Intervals, in brackets, are 95%.</p>"
    ]
    for title, (claims, draw, part_of) in FINDINGS.items():
        part = rulings[rulings.claim.isin(claims)]
        if part.empty:
            continue
        parts.append(f"<h3>{title}</h3>")
        for (claim, statement), settings in part.groupby(["claim", "statement"], sort=False):
            said = [
                f"<li>{escape(row.setting)}: <b>{row.verdict}</b>, {escape(row.here)} (the paper: {row.paper})</li>"
                for row in settings.itertuples()
            ]
            parts.append(f"<p>{claim}: {escape(statement)}.</p>\n<ul>{''.join(said)}</ul>")
        shown = ruled_on[ruled_on.run.isin([run.name for run in part_of(params)])]
        policies, batchings = (", ".join(shown[column].unique()) for column in ("policy", "batching"))
        parts.append(
            f'<figure><div class="wide"><img alt="{title}" src="data:image/png;base64,{_png(draw(shown))}"></div>'
            f"<figcaption>{shown.run.nunique()} runs: {escape(policies)}; {batchings}.</figcaption></figure>"
        )
        reasons = [
            f"<li>{', '.join(same.claim.unique())} ({escape('; '.join(same.setting.unique()))}): {escape(why)}.</li>"
            for why, same in part.groupby("why", sort=False)
        ]
        parts.append(f"<p>Why:</p>\n<ul>{''.join(reasons)}</ul>")
    return "\n".join(parts)


def provenance(out: Path) -> str:
    """Where the results come from, as HTML: engine, load, seeds, versions, hardware, commit, time, parameters."""
    params, manifests = Params.load(out / "params.yaml"), [*map(results.load_manifest, results.run_folders(out))]
    hardware = {", ".join(f"{key} {value}" for key, value in m["hardware"].items()) for m in manifests}
    versions = {", ".join(f"{package} {version}" for package, version in m["versions"].items()) for m in manifests}
    commits = {str(m["git_commit"]) + " and changes" * m.get("uncommitted_changes", False) for m in manifests}
    rows = {
        "engine": f"{params.engine}, {params.model}, {params.engine_args}",
        "runs": f"{len(manifests)} of {params.requests} requests, seeds {', '.join(map(str, params.seeds))}",
        "hardware": "; ".join(sorted(hardware)),
        "versions": "; ".join(sorted(versions)),
        "commit": ", ".join(sorted(commits)),
        "served": f"{min(m['started'] for m in manifests)} to {max(m['finished'] for m in manifests)}",
    }
    table = _table(pd.Series(rows).to_frame(), header=False, classes="provenance")
    yaml = escape((out / "params.yaml").read_text(encoding="utf-8"))
    return f"{table}\n<details><summary>Parameters: params.yaml</summary><pre>{yaml}</pre></details>"


def _table(frame: pd.DataFrame, **options) -> str:
    with pd.option_context("display.max_colwidth", None):
        return f'<div class="wide">{frame.to_html(border=0, **options)}</div>'


def _png(figure: Figure) -> str:
    image = BytesIO()
    figure.savefig(image, format="png")
    plt.close(figure)
    return b64encode(image.getvalue()).decode()


def _details(path: Path) -> str:
    """A notebook's prose and outputs, folded under its title; each picture's alt text is the heading above it."""
    notebook = nbformat.read(path, as_version=4)
    title = heading = path.stem
    for cell in notebook.cells:
        cell.id = f"{path.stem}-{cell.id}"[:64]  # ids are unique in a notebook, and have to be on the page
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            heading, _, text = cell.source.partition("\n")
            if heading.startswith("# "):
                title, cell.source = heading.removeprefix("# "), text
        cell.metadata["alt"] = heading.lstrip("# ")
    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_output_prompt=True, exclude_anchor_links=True
    )
    return f"<details><summary>{escape(title)}</summary>{exporter.from_notebook_node(notebook)[0]}</details>"
