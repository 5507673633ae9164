"""The classifier, what its leak is worth, and the two ways to count."""

import pandas as pd
import pytest
from helpers import make_request

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.requests import CATEGORIES, Output
from driftsched_lib.studies.classification import classified_prompts
from driftsched_lib.tokens import TokenizerCounter, WhitespaceCounter


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("How does DNS work?", "short_qa"),
        ("SUMMARIZE it", "summary"),
        ("the architecture of code", "technical"),
        ("a detailed comprehensive report on code", "report"),
        ("summary and report", "summary"),  # a tie goes to the first of summary, report, technical
        ("report of the architecture", "report"),
        ("a report on code architecture", "technical"),  # two hits against one
        ("reports", "report"),  # parts of words count
    ],
)
def test_most_key_words_win(prompt, category):
    assert KeywordClassifier().classify(prompt) == category


def test_the_prefix_leaks_the_label_and_without_it_technical_prompts_go_astray():
    labels = classified_prompts()
    assert labels.groupby("prompts").size().to_dict() == {"with the label prefix": 1180, "without it": 1180}
    right = (labels.job_type == labels.category).groupby([labels.prompts, labels.job_type]).mean()
    assert (right["with the label prefix"] == 1).all()
    without = right["without it"]
    assert {category: without[category] for category in CATEGORIES} == {
        "short_qa": 1.0,
        "summary": 1.0,
        "technical": pytest.approx(0.2),
        "report": 1.0,
    }
    astray = labels[(labels.prompts == "without it") & (labels.job_type != labels.category)]
    assert pd.unique(astray.category).tolist() == ["short_qa"]


def test_counters_count_prompts_and_outputs_in_one_unit():
    output = Output(make_request(1), prompt_tokens=3, tokens=12, words=9, first_token_s=0.0, finish_s=1.0)
    assert (WhitespaceCounter().prompt(" two  words\n"), WhitespaceCounter().output(output)) == (2, 9)
    assert (TokenizerCounter(len).prompt("four"), TokenizerCounter(len).output(output)) == (4, 12)


def test_words_need_text():
    with pytest.raises(ValueError, match="needs the generated text"):
        WhitespaceCounter().output(Output(make_request(1), 3, 12, None, 0.0, 1.0))
