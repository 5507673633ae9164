"""One function per figure: each takes a DataFrame and returns a matplotlib figure."""
# ruff: noqa: F401, I001

from driftsched_lib.figures.frontier import changes, confirmation, longest_waits, pareto, ranking
from driftsched_lib.figures.kinds import caption
from driftsched_lib.figures.paper import bias_over_time, change_against_fifo, depth_by_tier, e2e_tails
from driftsched_lib.figures.paper import estimate_against_actual, estimation_error, job_class_mistakes
from driftsched_lib.figures.paper import latency_by_tier, queue_depth, ttft_by_tier
from driftsched_lib.figures.studies import catching_up, coverage_over_time, fidelity_errors, gain_by_load
from driftsched_lib.figures.studies import simulated_against_real, speed_against_noise, tail_by_category
from driftsched_lib.figures.studies import where_the_gain_comes_from
from driftsched_lib.figures.style import use_style
