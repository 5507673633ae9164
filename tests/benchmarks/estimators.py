"""What an estimate costs: microseconds for estimating and observing together, and for classifying a prompt."""

import statistics
import time
from collections.abc import Callable, Sequence

import pandas as pd

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.estimators import ESTIMATORS
from driftsched_lib.requests import Request
from driftsched_lib.studies.drift_lab import lab_load
from driftsched_lib.workloads.text_classifier import TextClassifier

MAX_US, MAX_TEXT_US = 50, 500
PROMPT_WORDS = (12, 1_000, 10_000)


def estimator_costs(requests: int = 6000, size: int = 50, words: Sequence[int] = PROMPT_WORDS) -> pd.Series:
    """By estimator and classifier, the microseconds a request with the worst of these lengths of prompt, all distinct.

    What counts is the median over blocks of `size` requests of the mean of a block; the first third of the requests is
    learnt from and not counted.
    """
    costs = [_costs(_distinct(lab_load("recurring", 1, requests), n), size) for n in words]
    return pd.concat(costs, axis=1).max(axis=1).rename("microseconds")


def _distinct(load: Sequence[Request], words: int) -> Sequence[Request]:
    """The load with prompts of so many words, no two alike."""
    for i, request in enumerate(load):
        known = request.prompt.split()
        fill = [f"w{i}x{j % 50}" for j in range(words - len(known))]
        request.prompt = " ".join([*fill, *known])
    return load


def _costs(load: Sequence[Request], size: int) -> pd.Series:
    costs = {}
    for name, make in ESTIMATORS.items():
        estimator = make()

        def learn(request: Request, estimator=estimator) -> None:
            request.features = None  # of another estimator
            request.estimate = estimator.estimate(request)
            estimator.observe(request, request.fixed_output_tokens)

        costs[name] = _median_us(learn, load, size)
    for name, classifier in {"key words": KeywordClassifier(), "text classifier": TextClassifier()}.items():
        costs[name] = _median_us(lambda request, classify=classifier.classify: classify(request.prompt), load, size)
    return pd.Series(costs)


def _median_us(work: Callable[[Request], object], load: Sequence[Request], size: int) -> float:
    known = len(load) // 3
    for request in load[:known]:
        work(request)
    blocks = []
    for first in range(known, len(load), size):
        block = load[first : first + size]
        started = time.process_time()
        for request in block:
            work(request)
        blocks.append((time.process_time() - started) / len(block) * 1e6)
    return statistics.median(blocks)
