"""Benchmarks: `PYTHONPATH=tests python -m benchmarks` prints what it measures in one run, and which goals are met."""
