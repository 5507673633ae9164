"""The text model reads what the key words miss, also where it has seen neither topic nor wording."""

import pytest

from driftsched_lib.classify import (
    OTHER_WORDINGS,
    KeywordClassifier,
    TextClassifier,
    held_out_accuracy,
    labelled_prompts,
)
from driftsched_lib.requests import CATEGORIES


@pytest.fixture(scope="module")
def accuracy():
    return held_out_accuracy()


def test_held_out_prompts_are_classified_better_than_by_key_words(accuracy):
    assert accuracy.loc["all", "key words"] == pytest.approx(0.8)
    assert accuracy.loc["technical", "key words"] == pytest.approx(0.2)
    assert (accuracy[["new topics", "new wordings", "both new"]] >= 0.95).all(axis=None)
    assert accuracy.loc["all", "other wordings"] > accuracy.loc["all", "other wordings, key words"]


def test_any_text_has_a_category():
    classifier, again = TextClassifier(), TextClassifier()
    for text in ("", "?", "quark charm strange", "\x00\n\t", "Ünïcödé 漢字", "Explain " * 10_000):
        assert classifier.classify(text) in CATEGORIES
        assert classifier.classify(text) == again.classify(text)
    assert classifier.classify("Explain how TLS is implemented.") == "technical"
    assert KeywordClassifier().classify("Explain how TLS is implemented.") == "short_qa"


def test_training_takes_what_it_is_given():
    prompts, labels = labelled_prompts(["DNS"], [0])
    assert len(prompts) == 4 * 3 and set(labels) == set(CATEGORIES)
    assert not {text for texts in OTHER_WORDINGS.values() for text in texts} & set(labelled_prompts()[0])
