"""One function per figure: each takes a DataFrame and returns a matplotlib figure."""
# ruff: noqa: F401, I001

from driftsched_lib.figures.kinds import caption
from driftsched_lib.figures.paper import bias_over_time, change_against_fifo, depth_by_tier, e2e_tails
from driftsched_lib.figures.paper import estimate_against_actual, estimation_error, job_class_mistakes
from driftsched_lib.figures.paper import latency_by_tier, queue_depth, ttft_by_tier
from driftsched_lib.figures.studies import catching_up, changes, confirmation, coverage_over_time, fidelity_errors
from driftsched_lib.figures.studies import gain_by_load, longest_waits, pareto, ranking, simulated_against_real
from driftsched_lib.figures.studies import speed_against_noise, tail_by_category, where_the_gain_comes_from
from driftsched_lib.figures.style import use_style
