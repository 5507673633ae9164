"""Output-length estimators that learn online: `estimate(request)`, then `observe(request, output_tokens)`."""

from driftsched_lib.estimators.base import Estimator, Feedback
from driftsched_lib.estimators.oracle import Oracle
from driftsched_lib.estimators.paper import BASE_TOKENS, SAFETY, PaperEstimator

ESTIMATORS = {"paper": PaperEstimator, "oracle": Oracle}

__all__ = ["BASE_TOKENS", "ESTIMATORS", "SAFETY", "Estimator", "Feedback", "Oracle", "PaperEstimator"]
