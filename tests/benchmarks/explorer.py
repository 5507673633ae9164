"""How long the explorer takes to follow a change."""

import statistics
import time
from tempfile import mkdtemp

from driftsched_lib.experiments.params import Params
from driftsched_lib.explorer import Explorer
from driftsched_lib.validation import PROJECT

MAX_S = 0.5


def seconds_a_change(changes: int = 9) -> float:
    """The median seconds until picture and differences have followed another seed, with notebook 10's defaults."""
    params = Params.load(PROJECT / "params" / "quick.yaml", {"requests": 300, "length_scale": 0.5})
    explorer = Explorer(params, "data/profiles/driftsched-tiny-cpu.json", mkdtemp())
    taken = []
    for seed in range(2, 2 + changes):
        started = time.perf_counter()
        explorer.load_controls["seed"].value = seed
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
