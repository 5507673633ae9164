"""How well prompts are classified without their label, and the training of the text classifier."""

from collections.abc import Sequence
from itertools import product

import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from driftsched_lib.classify import KeywordClassifier, TextClassifier, TextWeights, words_of
from driftsched_lib.requests import CATEGORIES
from driftsched_lib.validation import PROJECT, read_yaml
from driftsched_lib.workloads.prompts import STYLES, TEMPLATES_PER_CATEGORY, TOPICS, build_prompt, label_prefix

OTHER_WORDINGS: dict[str, list[str]] = read_yaml(PROJECT / "data" / "other_wordings.yaml")
"""Prompts as other people word them; nothing is trained on them."""
WORDINGS = range(TEMPLATES_PER_CATEGORY)


def labelled_prompts(topics: Sequence[str] = TOPICS, wordings: Sequence[int] = WORDINGS) -> tuple[list[str], list[str]]:
    """Return the prompts of these topics and wordings in every style, without prefix, and their categories."""
    cases = list(product(CATEGORIES, topics, STYLES, wordings))
    prompts = [build_prompt(category, topic, wording, style) for category, topic, style, wording in cases]
    return prompts, [category for category, *_ in cases]


def train(topics: Sequence[str] = TOPICS, wordings: Sequence[int] = WORDINGS) -> TextWeights:
    """Return a logistic regression on the words of `labelled_prompts`; it takes a tenth of a second.

    `train().save(classify.TEXT_WEIGHTS)` writes the weights that come with the package.
    """
    prompts, labels = labelled_prompts(topics, wordings)
    vectorizer = CountVectorizer(tokenizer=words_of, token_pattern=None, lowercase=False, binary=True)
    model = LogisticRegression(C=10.0, max_iter=500).fit(vectorizer.fit_transform(prompts), labels)
    weights = {word: model.coef_[:, i].tolist() for word, i in sorted(vectorizer.vocabulary_.items())}
    return TextWeights(categories=model.classes_.tolist(), intercepts=model.intercept_.tolist(), weights=weights)


def held_out_accuracy() -> pd.DataFrame:
    """Return shares of prompts classified rightly, one row per category and one for all.

    Columns: key words; the text model with topic, wording, or both held out of its training (a fold per wording); and
    both classifiers on `OTHER_WORDINGS`.  These are hard; a held-out wording is not, as most of a category begin alike.
    """
    others = tuple(zip(*((text, label) for label, texts in OTHER_WORDINGS.items() for text in texts), strict=True))
    cases, rows = [("key words", KeywordClassifier(), labelled_prompts())], []
    for fold in WORDINGS:
        topics, wordings = TOPICS[fold :: len(WORDINGS)], [wording for wording in WORDINGS if wording != fold]
        other_topics = [topic for topic in TOPICS if topic not in topics]
        cases.append(("new topics", TextClassifier(train(other_topics)), labelled_prompts(topics)))
        cases.append(("new wordings", TextClassifier(train(TOPICS, wordings)), labelled_prompts(TOPICS, [fold])))
        cases.append(("both new", TextClassifier(train(other_topics, wordings)), labelled_prompts(topics, [fold])))
    cases += [("other wordings", TextClassifier(), others), ("other wordings, key words", KeywordClassifier(), others)]
    for how, classifier, texts in cases:
        rows += [(how, label, classifier.classify(text) == label) for text, label in zip(*texts, strict=True)]
    table = pd.DataFrame(rows, columns=["how", "category", "right"])
    shares = table.pivot_table("right", "category", "how", sort=False)
    return pd.concat([shares, shares.mean().rename("all").to_frame().T]).rename_axis("category")


def classified_prompts() -> pd.DataFrame:
    """Return every prompt of the load behind the paper's classifier, with and without the label prefix, one per row."""
    classify = KeywordClassifier().classify
    rows = []
    for category, topic, wording in product(CATEGORIES, TOPICS, WORDINGS):
        for name, prefix in (("with the label prefix", label_prefix(0, "tenant", category)), ("without it", "")):
            rows.append((name, category, classify(prefix + build_prompt(category, topic, wording))))
    return pd.DataFrame(rows, columns=["prompts", "job_type", "category"])
