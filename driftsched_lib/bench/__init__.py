"""Benchmarks: what our code costs, and what it adds to vLLM, measured side by side in one run, each with its goal."""
