"""Output-length estimators that learn online: `estimate(request)`, then `observe(request, output_tokens)`."""

from driftsched_lib.estimators.base import BASE_TOKENS, Estimator, Feedback
from driftsched_lib.estimators.kalman import Kalman
from driftsched_lib.estimators.oracle import Oracle
from driftsched_lib.estimators.page_hinkley import PageHinkley
from driftsched_lib.estimators.paper import SAFETY, PaperEstimator
from driftsched_lib.estimators.pooled import Pooled
from driftsched_lib.estimators.quantiles import RunningQuantiles
from driftsched_lib.estimators.ranker import Ranker
from driftsched_lib.estimators.regression import Regression
from driftsched_lib.estimators.tail import TailInflatedExpectation

ESTIMATORS = {
    "paper": PaperEstimator,
    "pooled": Pooled,
    "page_hinkley": PageHinkley,
    "kalman": Kalman,
    "regression": Regression,
    "quantiles": RunningQuantiles,
    "tail_inflated": TailInflatedExpectation,
    "ranker": Ranker,
    "oracle": Oracle,
}

__all__ = [
    "BASE_TOKENS",
    "ESTIMATORS",
    "SAFETY",
    "Estimator",
    "Feedback",
    "Kalman",
    "Oracle",
    "PageHinkley",
    "PaperEstimator",
    "Pooled",
    "Ranker",
    "Regression",
    "RunningQuantiles",
    "TailInflatedExpectation",
]
