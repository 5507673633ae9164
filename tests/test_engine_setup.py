"""What engines hold, and give back."""

from contextlib import closing

import psutil
import pytest

from driftsched_lib.engines.load import load_engine
from driftsched_lib.experiments.params import Params
from driftsched_lib.experiments.speed import warm_up
from driftsched_lib.validation import PROJECT


def memory_gib():
    """Of the device that holds models and KV caches."""
    import torch

    on_gpu = torch.cuda.is_available()
    return (torch.cuda.memory_reserved() if on_gpu else psutil.Process().memory_info().rss) / 2**30


def test_an_engine_that_is_closed_gives_its_memory_back():
    pytest.importorskip("vllm")
    params = Params.load(PROJECT / "params" / "smoke.yaml")  # a GiB of KV cache
    with closing(load_engine(params.engine)) as engine:
        warm_up(params, engine)
        held = memory_gib()
    assert memory_gib() < held - 0.5
