"""From a prompt to its workload category by a small text model, where no label prefix gives the answer away."""

import re
from collections.abc import Callable, Sequence
from itertools import product

import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.prompts import CATEGORIES, STYLES, TEMPLATES, TOPICS, build_prompt

_TOKENS = re.compile(r"\w+|\?")
FOLDS = 5


class TextClassifier:
    """Logistic regression on which words a prompt holds, and whether it holds a question mark.

    scikit-learn trains it, in about a tenth of a second, on the project's prompts; serving is a sum of weights a word,
    which takes a hundredth of the time of the pipeline's own `predict`.  Words that it does not know count for nothing.

    Parameters:
        topics, templates: what it is trained on; None for all.  Templates are numbers, the same in each category.
    """

    def __init__(self, topics: Sequence[str] | None = None, templates: Sequence[int] | None = None):
        prompts, labels = labelled_prompts(topics, templates)
        vectorizer = CountVectorizer(tokenizer=_tokens, token_pattern=None, lowercase=False, binary=True)
        model = LogisticRegression(C=10.0, max_iter=500).fit(vectorizer.fit_transform(prompts), labels)
        self.categories = [str(category) for category in model.classes_]
        self._intercepts = model.intercept_.tolist()
        self._weights = {word: model.coef_[:, i].tolist() for word, i in vectorizer.vocabulary_.items()}

    def classify(self, prompt: str) -> str:
        scores = list(self._intercepts)
        for word in set(_tokens(prompt)):
            for i, weight in enumerate(self._weights.get(word, ())):
                scores[i] += weight
        return self.categories[scores.index(max(scores))]


def labelled_prompts(
    topics: Sequence[str] | None = None, templates: Sequence[int] | None = None
) -> tuple[list[str], list[str]]:
    """The project's prompts of these topics and templates in every style, without the label prefix, and their
    categories."""
    prompts, labels = [], []
    for category, topic, style in product(CATEGORIES, TOPICS if topics is None else topics, STYLES):
        for template in range(len(TEMPLATES[category])) if templates is None else templates:
            prompts.append(build_prompt(category, topic, template, style))
            labels.append(category)
    return prompts, labels


def held_out_accuracy() -> pd.DataFrame:
    """Shares of prompts classified rightly, a row a category: by key words, and by the text model on prompts whose
    topic, whose wording, or both it was not trained on (`FOLDS`-fold).

    The wordings of a category mostly begin alike ("Summarize", "Explain", "Write", a question), and one of them held
    out still does: what this says of quite other wordings is little.
    """
    rows: list[dict[str, object]] = []

    def judge(how: str, classify: Callable[[str], str], topics: Sequence[str] | None, templates: Sequence[int] | None):
        for prompt, category in zip(*labelled_prompts(topics, templates), strict=True):
            rows.append({"how": how, "category": category, "right": classify(prompt) == category})

    judge("key words", KeywordClassifier().classify, None, None)
    wordings = range(len(TEMPLATES["summary"]))
    for fold in range(FOLDS):
        new_topics, old_topics = TOPICS[fold::FOLDS], [t for i, t in enumerate(TOPICS) if i % FOLDS != fold]
        new_wordings, old_wordings = [fold], [template for template in wordings if template != fold]
        judge("new topics", TextClassifier(old_topics).classify, new_topics, None)
        judge("new wordings", TextClassifier(None, old_wordings).classify, None, new_wordings)
        judge("both new", TextClassifier(old_topics, old_wordings).classify, new_topics, new_wordings)
    return pd.DataFrame(rows).pivot_table("right", "category", "how", sort=False, margins=True, margins_name="all")


def _tokens(prompt: str) -> list[str]:
    return _TOKENS.findall(prompt.lower())
