"""What the scorecard explains its rulings with, and the page that the notebooks end up on."""

import re

import nbformat.v4 as nb
import pandas as pd
import pytest

from driftsched_lib.report import write_report
from driftsched_lib.scorecard import barrier_waste, throughput


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


def test_the_report_shows_prose_and_outputs_without_code_or_network(tmp_path):
    for name in ("a", "b"):
        code = nb.new_code_cell("secret = 1", outputs=[nb.new_output("stream", text="forty-two\n")])
        notebook = nb.new_notebook(cells=[nb.new_markdown_cell("# Findings"), code])
        (tmp_path / f"{name}.ipynb").write_text(nb.writes(notebook))
    first, last = nb.new_markdown_cell("first of all"), nb.new_markdown_cell("last of all")
    write_report([first], [tmp_path / "a.ipynb", tmp_path / "b.ipynb"], last, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("forty-two") == 2 and page.count('id="Findings"') == 2 and 'href="#Findings"' in page
    assert page.index("first of all") < page.index("forty-two") < page.index("last of all")
    assert "secret" not in page
    assert not re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="https?:', page)
