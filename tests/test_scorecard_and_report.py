"""What the scorecard explains its rulings with, and the page that the notebooks end up on."""

import re

import nbformat.v4 as nb
import pandas as pd
import pytest
from simulation import PAPER_L4, SMALL

from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.figures.report import summary, write_report
from driftsched_lib.studies.scorecard import Ruling


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
    parts = ["summary", "scorecard", "findings", "notebooks", "provenance"]
    places = [page.index(f'<h2 id="{part}">') for part in parts]
    assert places == sorted(places)
    assert page.count("<details><summary>All of it</summary>") == 2 and page.count("forty-two") == 2
    assert "secret" not in page
    parameters = page[page.index("<details><summary>Parameters") :]
    assert "workload:" in parameters and "seeds:" in parameters


def test_each_claim_has_a_verdict_and_a_reason_and_each_finding_a_figure(page):
    rows = re.findall(r"<tr>(.*?)</tr>", section(page, "scorecard", "findings"), re.DOTALL)
    rulings = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in rows]
    assert {claim for claim, *_ in rulings} == {f"C{i}" for i in range(1, 8)}
    assert all(len(ruling) == len(Ruling._fields) and all(ruling) for ruling in rulings)
    found = section(page, "findings", "notebooks").split("<h3>")[1:]
    claims = [re.search(r"\((C\d(?:, C\d)*)\)</h3>", finding)[1] for finding in found]
    assert claims == ["C1, C2", "C3, C4", "C5", "C6", "C7"]
    assert all(finding.count("<img ") == 1 for finding in found)


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
    params = Params.load(PAPER_L4, SMALL | {"engine.model": "a<b"})
    said = summary(params, pd.DataFrame({"run": ["a", "a", "b"]}), rulings)
    assert said == (
        "<p>2 runs of 60 requests on simulated, a&lt;b. The paper's claims: C1 not reproduced (continuous), C1 "
        "reproduced (static), C3 direction only (static), C6 reproduced (static), C7 not reproduced (static).</p>"
    )


def test_a_grid_without_the_claims_policies_still_gets_a_report(tmp_path):
    run_grid(Params.load(PAPER_L4, SMALL | {"scheduler.policies": ["fifo"]}), tmp_path, jobs=1)
    write_report(tmp_path, [], tmp_path / "report.html")
    assert "none can be ruled on" in (tmp_path / "report.html").read_text()
