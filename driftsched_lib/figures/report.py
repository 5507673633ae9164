"""From a results folder to executed notebooks and one page: claims, findings with figures, notebooks, provenance.

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
from driftsched_lib.experiments.params import Params
from driftsched_lib.studies.compare import select
from driftsched_lib.studies.scorecard import CLOSE_TO_ONE, CLOSE_TO_THE_PAPER, completed_requests, scorecard
from driftsched_lib.validation import PROJECT

FINDINGS = {
    "The error of the estimates": (("C1", "C2"), figures.estimation_error, Params.estimate_runs),
    "Latency by scheduler": (("C3", "C4"), figures.change_against_fifo, Params.policy_runs),
    "Scheduler or calibration": (("C5",), figures.e2e_tails, Params.policy_runs),
    "The bias as it learns": (("C6",), figures.bias_over_time, Params.estimate_runs),
    "The job class": (("C7",), figures.job_class_mistakes, Params.estimate_runs),
}
"""By title: the claims that one figure shows, the figure, and the runs in it."""
RULES = (
    f"C1 to C4 are reproduced if the change surely has the paper's sign and is within {CLOSE_TO_THE_PAPER:.0%} of its "
    "number, or its interval holds that number; C5 and C7 if the difference surely has the paper's sign; C6 if the "
    f"distance is surely below {CLOSE_TO_ONE}. A sign alone is “direction only”. Brackets are 95% intervals."
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
    done = completed_requests(out)
    rulings = scorecard(done)
    sections = {
        "Summary": summary(results.load_params(out), done, rulings),
        "Scorecard": _table(rulings, index=False) + f"<p>{RULES}</p>",
        "Findings": findings(results.load_params(out), done, rulings),
        "Notebooks": "\n".join(map(_folded, notebooks)),
        "Provenance": provenance(out),
    }
    body = "\n".join(f'<h2 id="{title.lower()}">{title}</h2>\n{section}' for title, section in sections.items())
    page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    results.write_text(path, page.substitute(body=body))


def summary(params: Params, done: pd.DataFrame, rulings: pd.DataFrame) -> str:
    """Return how many runs there are, and each claim's verdicts, as a paragraph of HTML."""
    claims = rulings.groupby(["claim", "verdict"]).setting.agg("; ".join).reset_index()
    said = [f"{row.claim} {row.verdict} ({row.setting})" for row in claims.itertuples()]
    runs = f"{done.run.nunique()} runs of {params.requests:,} requests on {params.engine.kind}, {params.engine.model}"
    return f"<p>{escape(runs)}. The paper's claims: {escape(', '.join(said)) or 'none can be ruled on'}.</p>"


def findings(params: Params, done: pd.DataFrame, rulings: pd.DataFrame) -> str:
    """Return a figure per finding, with its claims, as HTML."""
    ruled_on, parts = select(done, estimator=done.estimator.iloc[0]), []
    for title, (claims, draw, part_of) in FINDINGS.items():
        if rulings.claim.isin(claims).any():
            shown = ruled_on[ruled_on.run.isin([run.name for run in part_of(params)])]
            runs = (
                f"{shown.run.nunique()} runs: {', '.join(shown.policy.unique())}; {', '.join(shown.batching.unique())}."
            )
            picture = f'<img alt="{title}" src="data:image/png;base64,{_png(draw(shown))}">'
            caption = f"<figcaption>{escape(runs)}</figcaption>"
            parts.append(f"<h3>{title} ({', '.join(claims)})</h3>")
            parts.append(f'<figure><div class="wide">{picture}</div>{caption}</figure>')
    return "\n".join(parts)


def provenance(out: Path) -> str:
    """Return engine, load, seeds, versions, hardware, commit, time and parameters as HTML."""
    params, manifests = results.load_params(out), [run.manifest for run in results.runs(out)]
    commits = {str(m["git_commit"]) + " and changes" * m.get("uncommitted_changes", False) for m in manifests}
    rows = {
        "engine": f"{params.engine.kind}, {params.engine.model}, {params.engine.args}",
        "runs": f"{len(manifests)} of {params.requests} requests, seeds {', '.join(map(str, params.seeds))}",
        "commit": ", ".join(sorted(commits)),
        "served": f"{min(m['started'] for m in manifests)} to {max(m['finished'] for m in manifests)}",
    }
    for key in ("hardware", "versions"):
        rows[key] = "; ".join(sorted({", ".join(f"{name} {of}" for name, of in m[key].items()) for m in manifests}))
    table = _table(pd.Series(rows).to_frame(), header=False, classes="provenance")
    yaml = escape((out / "params.yaml").read_text(encoding="utf-8"))
    return f"{table}\n<details><summary>Parameters: params.yaml</summary><pre>{yaml}</pre></details>"


def _table(frame: pd.DataFrame, **options: object) -> str:
    with pd.option_context("display.max_colwidth", None):
        return f'<div class="wide">{frame.to_html(border=0, **options)}</div>'


def _png(figure: Figure) -> str:
    image = BytesIO()
    figure.savefig(image, format="png")
    plt.close(figure)
    return b64encode(image.getvalue()).decode()


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
