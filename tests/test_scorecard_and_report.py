"""What the scorecard explains its rulings with, and the page that the notebooks end up on."""

import re

import nbformat.v4 as nb
import pandas as pd
import pytest
from simulation import PAPER_L4, SMALL

from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.figures.report import summary, write_report
from driftsched_lib.studies.scorecard import Ruling, barrier_waste, throughput


def batches(*lengths):
    rows = [
        {"run": "r", "phase": "p", "batch_id": i, "output_tokens": tokens, "arrival_s": 0.0, "finish_s": 2.0}
        for i, batch in enumerate(lengths)
        for tokens in batch
    ]
    return pd.DataFrame(rows)


def test_barrier_waste_by_hand():
    assert barrier_waste(batches([10, 10], [5])) == 0
    assert barrier_waste(batches([10, 5], [4, 4])) == pytest.approx(5 / 28)


def test_throughput_by_hand():
    assert throughput(batches([10, 5], [4, 4])) == pytest.approx(23 / 2)


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


def test_the_report_reads_as_a_paper(page):
    places = [
        page.index(f'<h2 id="{part}">') for part in ("summary", "findings", "scorecard", "notebooks", "provenance")
    ]
    assert places == sorted(places)
    assert page.count("<details><summary>All of it</summary>") == 2 and page.count("forty-two") == 2
    assert "secret" not in page
    parameters = page[page.index("<details><summary>Parameters") :]
    assert "short_qa:" in parameters and "seeds:" in parameters


def test_each_finding_has_a_figure_and_says_which_setting_each_reason_is_for(page):
    findings = page[page.index('id="findings"') : page.index('id="scorecard"')].split("<h3>")[1:]
    claims = [re.findall(r"<p>(C\d): ", finding) for finding in findings]
    assert claims == [["C1", "C2"], ["C3", "C4"], ["C5"], ["C6"], ["C7"]]
    for finding, shown in zip(findings, claims, strict=True):
        assert finding.count("<img ") == 1
        reasons = finding[finding.index("Why") :]
        texts = re.findall(r"<li>C\d(?:, C\d)* \(continuous[^)]*\): (.*?)</li>", reasons)
        assert len(texts) == reasons.count("<li>") == len(set(texts)) >= 1, shown


def test_the_report_needs_no_network_and_runs_no_script(page):
    assert not re.findall(r"<(?:script|link|iframe|object|embed|base)\b", page)
    assert not re.findall(r"""(?:src|srcset|data|action)\s*=\s*["']?(?!data:image/png;base64,)[^"'>]*//""", page)
    assert not re.findall(r"""@import|\bimport\s*\(|url\s*\(""", page)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page[: page.index("<body>")]


def test_the_pictures_of_the_report_have_alt_texts_and_its_ids_are_unique(page):
    pictures = re.findall(r"<img [^>]*>", page)
    alts = [re.search(r'alt="([^"]*)"', picture)[1] for picture in pictures]
    assert len(pictures) == 5 + 2 and all(alts) and alts.count("A picture &amp; more") == 2
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) >= 5 + 6


def test_the_summary_sorts_the_claims_by_what_came_of_them():
    def ruling(claim, setting, here, verdict):
        return Ruling(claim, "statement", setting, "-42%", here, verdict, "why")

    rulings = pd.DataFrame(
        [
            ruling("C1", "static", "-40.0% [-41.0, -39.0]", "reproduced"),
            ruling("C1", "continuous", "+0.0% [+0.0, +0.0]", "not reproduced"),
            ruling("C3", "static", "-20.0% [-21.0, -19.0]", "direction only"),
            ruling("C6", "static", "mean distance 0.000", "reproduced"),
            ruling("C7", "static", "+1.0 flips", "not reproduced"),
        ]
    )
    params = Params.load(PAPER_L4, SMALL | {"model": "a<b"})
    said = summary(params, pd.DataFrame({"run": ["a", "a", "b"]}), rulings)
    assert said == (
        "<p>2 runs of 60 requests each, on simulated, a&lt;b. The paper&#x27;s claims: C6 reproduced in every setting; "
        "C1 reproduced in some settings; C3 right in direction only, in some or all settings; C7 not reproduced in any "
        "setting. Calibration changes the MAE of the estimates by -40.0% (static), +0.0% (continuous). SJF changes P50 "
        "E2E against FIFO by -20.0% (static).</p>"
    )


def test_a_grid_without_the_claims_policies_still_gets_a_report(tmp_path):
    run_grid(Params.load(PAPER_L4, SMALL | {"policies": ["fifo"]}), tmp_path, jobs=1)
    write_report(tmp_path, [], tmp_path / "report.html")
    assert "none can be ruled on" in (tmp_path / "report.html").read_text()
