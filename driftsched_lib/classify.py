"""From a prompt to its workload category."""

from collections.abc import Mapping, Sequence
from typing import Protocol

KEYWORDS = {
    "summary": ("summarize", "summary"),
    "report": ("detailed", "report", "comprehensive"),
    "technical": ("architecture", "code", "technical"),
}


class Classifier(Protocol):
    """What tells a prompt's category, as it is submitted."""

    def classify(self, prompt: str) -> str: ...


class KeywordClassifier:
    """Counts key words in the lower-cased prompt; most hits win, ties go to the earlier category, no hit to `default`.

    Source: the paper's reference implementation (arXiv 2606.02982).  Behind the load generator's prefix
    "Job type report." it reads the label itself; without the prefix most technical prompts fall to `short_qa`.
    """

    def __init__(self, keywords: Mapping[str, Sequence[str]] = KEYWORDS, default: str = "short_qa"):
        self.keywords = {category: tuple(words) for category, words in keywords.items()}
        self.default = default

    def classify(self, prompt: str) -> str:
        text = prompt.lower()
        best, most = self.default, 0
        for category, words in self.keywords.items():
            hits = 0
            for word in words:
                if word in text:  # cheaper than to count what is not there
                    hits += text.count(word)
            if hits > most:
                best, most = category, hits
        return best
