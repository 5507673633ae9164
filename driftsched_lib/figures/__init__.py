"""One function per figure: each takes a DataFrame and returns a matplotlib figure."""
# ruff: noqa: F401, I001

from driftsched_lib.figures.frontier import changes, confirmation, longest_waits, pareto, ranking
from driftsched_lib.figures.paper import basis, bias_over_time, change_against_fifo, e2e_tails, estimate_against_actual
from driftsched_lib.figures.paper import estimation_error, job_class_mistakes, latency_by_tier, queue_depth
from driftsched_lib.figures.studies import catching_up, fidelity_errors, gain_by_load, where_the_gain_comes_from
from driftsched_lib.figures.style import COLORS, use_style
