"""From a prompt to its workload category by a small text model, where no label prefix gives the answer away."""

import re
from collections.abc import Sequence
from itertools import product

import pandas as pd

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.estimators.features import ends
from driftsched_lib.requests import CATEGORIES
from driftsched_lib.workloads.prompts import STYLES, TEMPLATES, TOPICS, build_prompt

_TOKENS = re.compile(r"\w+|\?")
FOLDS = 5
"""As many as there are wordings in a category."""


class TextClassifier:
    """Logistic regression on which words a prompt holds, and whether it holds a question mark.

    scikit-learn trains it, in about a tenth of a second, on the project's prompts; serving is a sum of weights a word,
    which takes a hundredth of the time of the pipeline's own `predict`.  Words that it does not know count for nothing,
    nor does the middle of a long prompt (`features.ends`).

    Parameters:
        topics, templates: what it is trained on; None for all.  Templates are numbers, the same in each category.
    """

    def __init__(self, topics: Sequence[str] | None = None, templates: Sequence[int] | None = None):
        # Here, for it takes a second to load, and most runs read key words.
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression

        prompts, labels = labelled_prompts(topics, templates)
        vectorizer = CountVectorizer(tokenizer=_tokens, token_pattern=None, lowercase=False, binary=True)
        model = LogisticRegression(C=10.0, max_iter=500).fit(vectorizer.fit_transform(prompts), labels)
        self.categories = [str(category) for category in model.classes_]
        self._intercepts = model.intercept_.tolist()
        self._weights = {word: model.coef_[:, i].tolist() for word, i in vectorizer.vocabulary_.items()}

    def classify(self, prompt: str) -> str:
        weights = self._weights
        known = [weights[word] for word in set(_tokens(ends(prompt))) if word in weights]
        scores = list(map(sum, zip(self._intercepts, *known, strict=True)))
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


OTHER_WORDINGS = {
    "short_qa": (
        "Who invented BGP?",
        "Is Redis single-threaded?",
        "Why do we need TLS?",
        "Can Kafka lose messages?",
        "Define an API gateway in one line.",
    ),
    "summary": (
        "Give me a summary of how Terraform works.",
        "Sum up the key ideas of OAuth.",
        "TL;DR of PagedAttention please.",
        "Briefly recap the history of Docker.",
        "Condense the main points about CDNs.",
    ),
    "technical": (
        "Describe the internals of PostgreSQL replication.",
        "Walk me through the architecture of a service mesh.",
        "How exactly does the KV cache get evicted, step by step?",
        "Show how CUDA streams overlap copies with kernels.",
        "Detail the implementation of rate limiting with token buckets.",
    ),
    "report": (
        "Prepare a comprehensive report about cloud security.",
        "Draft a long analysis of multi-tenant systems.",
        "Produce a full assessment of our observability stack.",
        "Write an in-depth study of autoscaling in production.",
        "Compile a white paper on zero trust.",
    ),
}
"""Prompts as other people word them, which nothing here is trained on."""


def held_out_accuracy() -> pd.DataFrame:
    """Shares of prompts classified rightly, a row a category: by key words, and by the text model where the topic, the
    wording, or both were held out of its training (`FOLDS`-fold).

    The wordings of a category mostly begin alike ("Summarize", "Explain", "Write", a question), and one of them held
    out still does; what quite other wordings come to is in the last two columns, of `OTHER_WORDINGS`.
    """
    rows: list[tuple[str, str, bool]] = []

    def judge(how: str, classifier: KeywordClassifier | TextClassifier, prompts: Sequence[str], labels: Sequence[str]):
        for prompt, label in zip(prompts, labels, strict=True):
            rows.append((how, label, classifier.classify(prompt) == label))

    judge("key words", KeywordClassifier(), *labelled_prompts())
    for fold in range(FOLDS):
        topics, other_topics = TOPICS[fold::FOLDS], [t for i, t in enumerate(TOPICS) if i % FOLDS != fold]
        wordings, other_wordings = [fold], [wording for wording in range(FOLDS) if wording != fold]
        judge("new topics", TextClassifier(other_topics), *labelled_prompts(topics))
        judge("new wordings", TextClassifier(None, other_wordings), *labelled_prompts(None, wordings))
        judge("both new", TextClassifier(other_topics, other_wordings), *labelled_prompts(topics, wordings))
    prompts, labels = zip(*((text, label) for label, texts in OTHER_WORDINGS.items() for text in texts), strict=True)
    judge("other wordings", TextClassifier(), prompts, labels)
    judge("other wordings, key words", KeywordClassifier(), prompts, labels)
    shares = pd.DataFrame(rows, columns=["how", "category", "right"]).pivot_table(
        "right", "category", "how", sort=False
    )
    return pd.concat([shares, shares.mean().rename("all").to_frame().T]).rename_axis("category")


def _tokens(prompt: str) -> list[str]:
    return _TOKENS.findall(prompt.lower())
