"""One function a figure."""

from driftsched_lib.figures.drift import catching_up, coverage_over_time, speed_against_noise
from driftsched_lib.figures.estimation import (
    bias_over_time,
    confusion,
    estimate_against_actual,
    estimation_error,
    job_class_mistakes,
)
from driftsched_lib.figures.frontier import changes, longest_waits, pareto
from driftsched_lib.figures.recommendation import confirmation, ranking
from driftsched_lib.figures.scheduling import (
    change_against_fifo,
    depth_by_tier,
    e2e_tails,
    latency_by_tier,
    queue_depth,
    telemetry,
    ttft_by_tier,
)
from driftsched_lib.figures.simulation import (
    fidelity_errors,
    gain_by_load,
    latency_by_load,
    simulated_against_real,
    step_residuals,
    tail_by_category,
    where_the_gain_comes_from,
)
from driftsched_lib.figures.style import use_style
from driftsched_lib.figures.training import corpus_lengths, topic_lengths, training_curve

__all__ = [
    "bias_over_time",
    "catching_up",
    "change_against_fifo",
    "changes",
    "confirmation",
    "confusion",
    "corpus_lengths",
    "coverage_over_time",
    "depth_by_tier",
    "e2e_tails",
    "estimate_against_actual",
    "estimation_error",
    "fidelity_errors",
    "gain_by_load",
    "job_class_mistakes",
    "latency_by_load",
    "latency_by_tier",
    "longest_waits",
    "pareto",
    "queue_depth",
    "ranking",
    "simulated_against_real",
    "speed_against_noise",
    "step_residuals",
    "tail_by_category",
    "telemetry",
    "topic_lengths",
    "training_curve",
    "ttft_by_tier",
    "use_style",
    "where_the_gain_comes_from",
]
