"""From a prompt to its workload category."""

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from driftsched_lib.estimators.features import ends
from driftsched_lib.validation import PROJECT, JsonFile

KEYWORDS = {
    "summary": ("summarize", "summary"),
    "report": ("detailed", "report", "comprehensive"),
    "technical": ("architecture", "code", "technical"),
}
TEXT_WEIGHTS = PROJECT / "driftsched_lib" / "text_classifier.json"
_WORDS = re.compile(r"\w+|\?")


class Classifier(Protocol):
    """Tells the category of a prompt as it is submitted."""

    def classify(self, prompt: str) -> str: ...


class KeywordClassifier:
    """Count key words in the lower-cased prompt; most hits win, ties go to the earlier category, no hit to `default`.

    Source: the paper's reference implementation (arXiv 2606.02982).  With the load generator's prefix
    "Job type report." it reads the label itself; without the prefix most technical prompts become `short_qa`.

    Parameters:
        keywords: key words by category; parts of words count.
        default: the category of a prompt without key words.

    >>> KeywordClassifier().classify("Write a detailed report on DNS.")
    'report'
    """

    def __init__(self, keywords: Mapping[str, Sequence[str]] = KEYWORDS, default: str = "short_qa"):
        self.keywords = {category: tuple(words) for category, words in keywords.items()}
        self.default = default

    def classify(self, prompt: str) -> str:
        text = prompt.lower()
        best, most = self.default, 0
        for category, words in self.keywords.items():
            hits = sum(text.count(word) for word in words if word in text)  # `in` is cheaper than to count nothing
            if hits > most:
                best, most = category, hits
        return best


class TextWeights(JsonFile):
    """A linear model of text: per category an intercept, and per word one weight for each category."""

    categories: list[str]
    intercepts: list[float]
    weights: dict[str, list[float]]


class TextClassifier:
    """Classify by a linear model of the words that a prompt holds, and whether it holds a question mark.

    Unknown words count for nothing, nor does the middle of a long prompt (`features.ends`).  O(words read).

    Parameters:
        weights: the model; None for `TEXT_WEIGHTS`, which `studies.classification.train` made of the project's prompts
            by logistic regression.

    >>> TextClassifier().classify("Explain how TLS is implemented.")
    'technical'
    """

    def __init__(self, weights: TextWeights | None = None):
        model = TextWeights.load(TEXT_WEIGHTS) if weights is None else weights
        self.categories, self._intercepts, self._weights = model.categories, model.intercepts, model.weights

    def classify(self, prompt: str) -> str:
        words = dict.fromkeys(words_of(ends(prompt)))
        known = [self._weights[word] for word in words if word in self._weights]
        scores = list(map(sum, zip(self._intercepts, *known, strict=True)))
        return self.categories[scores.index(max(scores))]


def words_of(text: str) -> list[str]:
    """Return the lower-cased words and question marks of a text."""
    return _WORDS.findall(text.lower())
