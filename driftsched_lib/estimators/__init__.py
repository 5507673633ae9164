"""Output-length estimators that learn online: `estimate(request)`, then `observe(request, output_tokens)`."""

from driftsched_lib.estimators.base import Censored, Estimator, Feedback
from driftsched_lib.estimators.interval import IntervalEstimator, State
from driftsched_lib.estimators.kalman import Kalman
from driftsched_lib.estimators.oracle import Oracle
from driftsched_lib.estimators.page_hinkley import PageHinkley
from driftsched_lib.estimators.paper import PaperEstimator
from driftsched_lib.estimators.pooled import Pooled
from driftsched_lib.estimators.quantiles import RunningQuantiles
from driftsched_lib.estimators.regression import Regression
from driftsched_lib.validation import component

ESTIMATORS = {
    "paper": PaperEstimator,
    "pooled": Pooled,
    "page_hinkley": PageHinkley,
    "kalman": Kalman,
    "regression": Regression,
    "quantiles": RunningQuantiles,
    "oracle": Oracle,
}

EstimatorName = component(ESTIMATORS, shared=("base_tokens", "calibrate", "tiers"))
"""An estimator in parameters; `base_tokens`, `calibrate` and `tiers` are given when it is built."""

__all__ = [
    "ESTIMATORS", "Censored", "Estimator", "EstimatorName", "Feedback", "IntervalEstimator", "Kalman", "Oracle",
    "PageHinkley", "PaperEstimator", "Pooled", "Regression", "RunningQuantiles", "State",
]  # fmt: skip
