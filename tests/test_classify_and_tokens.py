"""The two classifiers, what the label prefix leaks, and the two ways to count."""

from dataclasses import replace

import pandas as pd
import pytest
from helpers import make_request

from driftsched_lib.classify import TEXT_WEIGHTS, KeywordClassifier, TextClassifier, TextWeights
from driftsched_lib.requests import CATEGORIES, Output
from driftsched_lib.studies import classification as study
from driftsched_lib.studies.classification import OTHER_WORDINGS, labelled_prompts, train
from driftsched_lib.tokens import TokenizerCounter, WhitespaceCounter

CATEGORY_OF = {
    "How does DNS work?": "short_qa",
    "SUMMARIZE it": "summary",
    "the architecture of code": "technical",
    "a detailed comprehensive report on code": "report",
    "summary and report": "summary",  # a tie goes to the first of summary, report, technical
    "report of the architecture": "report",
    "a report on code architecture": "technical",  # two hits against one
    "reports": "report",  # parts of words count
}


@pytest.mark.parametrize("prompt", CATEGORY_OF)
def test_most_key_words_win(prompt):
    assert KeywordClassifier().classify(prompt) == CATEGORY_OF[prompt]


def test_the_prefix_leaks_the_label_and_without_it_technical_prompts_go_astray():
    labels = study.classified_prompts()
    assert labels.groupby("prompts").size().to_dict() == {"with the label prefix": 1180, "without it": 1180}
    right = (labels.job_type == labels.category).groupby([labels.prompts, labels.job_type]).mean()
    assert (right["with the label prefix"] == 1).all()
    assert right["without it"].to_dict() == pytest.approx(
        {"short_qa": 1.0, "summary": 1.0, "technical": 0.2, "report": 1.0}
    )
    astray = labels[(labels.prompts == "without it") & (labels.job_type != labels.category)]
    assert pd.unique(astray.category).tolist() == ["short_qa"]


def test_held_out_prompts_are_classified_better_than_by_key_words():
    accuracy = study.held_out_accuracy()
    assert accuracy.loc["all", "key words"] == pytest.approx(0.8)
    assert accuracy.loc["technical", "key words"] == pytest.approx(0.2)
    assert (accuracy[["new topics", "new wordings", "both new"]] >= 0.95).all(axis=None)
    assert accuracy.loc["all", "other wordings"] > accuracy.loc["all", "other wordings, key words"]


def test_any_text_has_a_category():
    classifier, again = TextClassifier(), TextClassifier()
    for text in ("", "?", "quark charm strange", "\x00\n\t", "Ünïcödé 漢字", "Explain " * 10_000):
        assert classifier.classify(text) == again.classify(text) in CATEGORIES
    assert classifier.classify("Explain how TLS is implemented.") == "technical"
    assert KeywordClassifier().classify("Explain how TLS is implemented.") == "short_qa"


def test_training_anew_gives_the_packaged_weights():
    packaged, trained = TextWeights.load(TEXT_WEIGHTS), train()
    for word, weights in trained.weights.items():
        assert packaged.weights[word] == pytest.approx(weights, abs=1e-3)  # solvers differ a little between machines
    assert packaged.categories == trained.categories and packaged.weights.keys() == trained.weights.keys()
    prompts, labels = labelled_prompts()
    others = [text for texts in OTHER_WORDINGS.values() for text in texts]
    now, anew = TextClassifier(), TextClassifier(trained)
    assert [now.classify(text) for text in prompts] == labels
    assert [now.classify(text) for text in others] == [anew.classify(text) for text in others]
    assert not set(others) & set(prompts)
    assert len(labelled_prompts(["DNS"], [0])[0]) == 4 * 3 and "kafka" not in train(["DNS"], [0]).weights


def test_counters_count_prompts_and_outputs_in_one_unit_and_words_need_text():
    output = Output(make_request(1), prompt_tokens=3, tokens=12, words=9, first_token_s=0.0, finish_s=1.0)
    assert (WhitespaceCounter().prompt(" two  words\n"), WhitespaceCounter().output(output)) == (2, 9)
    assert (TokenizerCounter(len).prompt("four"), TokenizerCounter(len).output(output)) == (4, 12)
    with pytest.raises(ValueError, match="needs the generated text"):
        WhitespaceCounter().output(replace(output, words=None))
