"""What the scorecard explains its rulings with, and the page that the notebooks end up on."""

import re

import nbformat.v4 as nb
import pytest
from simulation import PAPER_L4, SMALL

from driftsched_lib import Params, results, run_grid
from driftsched_lib.figures.report import write_report
from driftsched_lib.studies.compare import quantile, relative_change, select
from driftsched_lib.studies.scorecard import Ruling, completed_requests, scorecard, sustained


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a small grid, with two notebooks that share their cells' ids."""
    out = tmp_path_factory.mktemp("out")
    run_grid(Params.load(PAPER_L4, SMALL), out, jobs=1)
    outputs = [
        nb.new_output("stream", text="forty-two\n"),
        nb.new_output("display_data", {"image/png": "", "text/plain": ""}),
    ]
    cells = [
        nb.new_markdown_cell("# All of it\nprose", id="title"),
        nb.new_markdown_cell("## A picture & more", id="heading"),
        nb.new_code_cell("secret = 1", outputs=outputs, id="code"),
    ]
    for name in ("a", "b"):
        (out / f"{name}.ipynb").write_text(nb.writes(nb.new_notebook(cells=cells)))
    write_report(out, [out / "a.ipynb", out / "b.ipynb"], out / "report.html")
    return (out / "report.html").read_text()


def section(page, name, after):
    return page[page.index(f'<h2 id="{name}">') : page.index(f'<h2 id="{after}">')]


def test_the_report_reads_as_a_paper(page):
    parts = ["scorecard", "latency", "notebooks", "provenance"]
    places = [page.index(f'<h2 id="{part}">') for part in parts]
    assert places == sorted(places)
    assert page.count("<details><summary>All of it</summary>") == 2 and page.count("forty-two") == 2
    assert "secret" not in page
    parameters = page[page.index("<details><summary>Parameters") :]
    assert "workload:" in parameters and "seeds:" in parameters


def test_each_claim_has_a_verdict_and_a_reason_and_one_figure_shows_the_policies(page):
    rows = re.findall(r"<tr>(.*?)</tr>", section(page, "scorecard", "latency"), re.DOTALL)
    rulings = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in rows]
    assert {claim for claim, *_ in rulings} == {f"C{i}" for i in range(1, 8)}
    assert all(len(ruling) == len(Ruling._fields) and all(ruling) for ruling in rulings)
    assert section(page, "latency", "notebooks").count("<img ") == 1


def test_the_report_needs_no_network_runs_no_script_and_has_alt_texts_and_unique_ids(page):
    assert not re.findall(r"<(?:script|link|iframe|object|embed|base)\b", page)
    assert not re.findall(r"""(?:src|srcset|data|action)\s*=\s*["']?(?!data:image/png;base64,)[^"'>]*//""", page)
    assert not re.findall(r"""@import|\bimport\s*\(|url\s*\(""", page)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page[: page.index("<body>")]
    pictures = re.findall(r"<img [^>]*>", page)
    alts = [re.search(r'alt="([^"]*)"', picture)[1] for picture in pictures]
    assert len(pictures) == 1 + 2 and all(alts) and alts.count("A picture &amp; more") == 2
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) >= 4 + 6


def test_a_grid_without_the_claims_policies_still_gets_a_report(tmp_path):
    run_grid(Params.load(PAPER_L4, SMALL | {"scheduler.policies": ["fifo"]}), tmp_path, jobs=1)
    write_report(tmp_path, [], tmp_path / "report.html")
    assert "No claim can be ruled on" in (tmp_path / "report.html").read_text()


def test_the_tail_is_of_the_stress_phase_and_says_what_was_left_out(tmp_path):
    run_grid(Params.load(PAPER_L4, SMALL | {"workload.queue_timeout_s": 1.0}), tmp_path, jobs=1)
    done, served = (select(of(tmp_path), estimator="paper") for of in (completed_requests, results.load))
    ruling = scorecard(done).set_index("claim").loc["C4"]
    sides = {"policy": "sjf", "calibration": True, "token_counter": "whitespace"}, {"policy": "fifo"}
    stress = [select(served, phase="stress", **side).set_index(["seed", "request_id"]).outcome for side in sides]
    both = (stress[0] == "completed") & (stress[1] == "completed")
    assert ruling.setting == "continuous, stress phase" and 0.1 < both.mean() < 0.9
    change = relative_change(select(done, phase="stress"), "e2e_s", quantile(0.99), *sides)
    assert ruling.here.startswith(f"{100 * change.estimate:+.1f}%") and change.left_out == pytest.approx(
        1 - both.mean()
    )
    assert f"{change.left_out:.1%} of requests left out" in ruling.here
    assert sustained(select(done, phase="learning"))[1] == "all of learning"
