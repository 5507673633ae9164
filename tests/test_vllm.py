"""Real vLLM on this machine with the embedded model: one engine for the file."""

import re
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from inside_vllm import MODEL
from simulation import served

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.engines.base import STEP_COLUMNS
from driftsched_lib.engines.load import load_engine
from driftsched_lib.engines.profile import Profile
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators import PaperEstimator
from driftsched_lib.experiments.params import Params
from driftsched_lib.policies import ShortestJobFirst
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import ContinuousBatching, StaticBatching, serve
from driftsched_lib.tokens import TokenizerCounter
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads.synthetic import make_load

SMOKE = PROJECT / "params" / "smoke.yaml"


@pytest.fixture(scope="module")
def engine():
    return load_engine(Params.load(SMOKE).engine)


@pytest.fixture
def serve_all(engine):
    """Serve requests under SJF and return their records as a frame by request id."""

    def run(requests, batching):
        records = []
        counter = TokenizerCounter(engine.count_tokens)
        scheduler = Scheduler(ShortestJobFirst(), PaperEstimator(), counter, KeywordClassifier(), records.append)
        engine.restart_clock()
        serve(requests, scheduler, engine, batching)
        frame = pd.DataFrame(records).set_index("request_id")
        assert sorted(frame.index) == sorted(request.request_id for request in requests)
        return frame

    return run


def requests(**changes):
    params = Params.load(SMOKE, {f"workload.{name}": value for name, value in changes.items()})
    return make_load(params.workload, params.requests, 1, capacity_tokens_per_s=2000.0)[-1].requests


@pytest.fixture(params=[ContinuousBatching, partial(StaticBatching, 8, 0.01)], ids=["continuous", "static"])
def batching(request):
    return request.param()


def test_fixed_outputs_have_exactly_their_length_and_times_are_in_order(engine, serve_all, batching):
    frame = serve_all(requests(), batching)
    assert (frame.outcome == "completed").all()
    assert (frame.output_tokens == frame.max_tokens).all() and (frame.actual_tokens == frame.max_tokens).all()
    assert (frame.output_words > 0).all() and (frame.output_words <= frame.output_tokens).all()
    assert (frame.arrival_s <= frame.dispatch_s).all() and (frame.dispatch_s < frame.first_token_s).all()
    assert (frame.first_token_s <= frame.finish_s).all()
    steps = pd.DataFrame(engine.steps, columns=STEP_COLUMNS)  # one row per iteration
    assert steps.time_s.is_monotonic_increasing and steps.running.max() <= engine.max_num_seqs
    assert (steps.duration_s > 0).all() and (steps.duration_s <= steps.time_s.diff().fillna(steps.time_s)).all()
    assert steps.prompt_tokens.sum() == frame.prompt_tokens.sum()
    assert steps.output_tokens.sum() + steps.prompt_requests.sum() == frame.output_tokens.sum()
    if isinstance(batching, StaticBatching):
        assert (frame.groupby("batch_id").finish_s.nunique() == 1).all()
        assert frame.groupby("batch_id").size().max() <= 8


def test_natural_outputs_end_by_themselves_or_at_their_limit(serve_all):
    frame = serve_all(requests(output_length="natural", length_scale=0.5), ContinuousBatching())
    assert (frame.output_tokens <= frame.max_tokens).all()
    assert (frame.output_tokens < frame.max_tokens).mean() > 0.5
    assert sum(path.stat().st_size for path in Path(MODEL).iterdir()) < 15 * 2**20  # and yet it ends its answers
    assert frame.groupby("job_type").output_tokens.mean().nunique() > 1


def test_a_request_is_sampled_at_its_own_temperature_or_the_engines(engine, monkeypatch):
    asked, load = [], requests()[:2]
    load[1].temperature = 1.6
    monkeypatch.setattr(engine._llm, "add_request", lambda _, prompt, params: asked.append(params.temperature))
    for request in load:
        engine.add(request)
    engine._in_flight.clear()
    assert asked == [engine.temperature, 1.6]


def test_clients_may_leave_in_mid_run(engine, serve_all, batching):
    some = requests()
    for request in some[::3]:
        request.cancel_s = request.arrival_s + 0.02
    frame = serve_all(some, batching)
    assert engine.has_room() and not engine.steps[-1][STEP_COLUMNS.index("waiting")]
    assert set(frame.outcome) <= {"completed", "cancelled"}
    assert (frame.outcome == "cancelled").any()
    assert (frame.outcome[[request.request_id for request in some if request.cancel_s is None]] == "completed").all()


def test_requests_beyond_the_context_fail_alone(serve_all):
    some = requests()
    some[2].prompt, some[3].prompt, some[3].fixed_output_tokens = "latency " * 3000, "latency " * 450, 1020
    frame = serve_all(some, ContinuousBatching()).loc[[request.request_id for request in some]]
    failed = frame[frame.outcome == "failed"]
    assert list(failed.index) == [some[2].request_id, some[3].request_id] and len(frame) == len(some)
    assert re.match(r"the prompt has \d+ tokens, and the context takes 1 to 1023", failed.reason.iloc[0])
    assert re.match(r"the context holds \d+ of 1020 fixed", failed.reason.iloc[1])
    assert (frame.outcome.drop(failed.index) == "completed").all()


def test_given_lengths_are_served_to_the_token_and_refused_as_by_the_simulator(engine, serve_all):
    mix = {"name": "azure", "lengths": "data/traces/azure-conv-2023.json", "load_factor": 8.0}
    loads = [requests(phases=[mix]) for _ in range(2)]
    for load in loads:
        for i, lengths in enumerate([(500, 3), (1, 1), (1023, 1), (1023, 2), (1024, 1), (10**9, 1), (5, 1020)]):
            load[i].prompt_tokens, load[i].fixed_output_tokens = lengths
        load[1].prompt = ""
    profile = Profile.load(PROJECT / "data" / "profiles" / "driftsched-tiny-cpu.json")
    simulator = SimulatedEngine(profile.model_copy(update={"limits": engine.limits}))
    frames = serve_all(loads[0], ContinuousBatching()), pd.DataFrame(served(loads[1], simulator).values())
    real, simulated = (frame.set_index("request_id").sort_index() for frame in (frames[0].reset_index(), frames[1]))
    for column in ("outcome", "reason", "prompt_tokens", "input_tokens", "output_tokens"):
        pd.testing.assert_series_equal(real[column], simulated[column], check_dtype=False)
    given = pd.DataFrame(loads[0]).set_index("request_id").loc[real.index]
    assert (real.input_tokens == given.prompt_tokens).all() and (real.outcome == "failed").sum() == 4
    done = real[real.outcome == "completed"]
    sizes = given.loc[done.index, ["prompt_tokens", "fixed_output_tokens"]]
    assert (done[["prompt_tokens", "output_tokens"]].to_numpy() == sizes.to_numpy()).all()


def test_an_unknown_engine_argument_and_a_model_that_is_not_there_are_named(engine, tmp_path):
    with pytest.raises(ParamsError, match="args: vLLM does not know max_seqs"):
        load_engine(Params.load(SMOKE, {"engine.args.max_seqs": 8}).engine)
    with pytest.raises(ParamsError, match=f"model '{tmp_path}' .* cannot be loaded"):
        load_engine(Params.load(SMOKE, {"engine.model": str(tmp_path)}).engine)
