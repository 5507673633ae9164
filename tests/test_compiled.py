"""The compiled loop says to the last bit what `serve` records, or leaves it to `serve`."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import COSTS, PAPER_L4, EngineTokens, contents, make_profile, request, words

from driftsched_lib import experiment, results
from driftsched_lib.admission import admission_check
from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.compiled import serve_compiled
from driftsched_lib.engines.replicated import ROUTERS, ReplicatedEngine
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.estimators import Kalman, Oracle, PaperEstimator
from driftsched_lib.params import Params
from driftsched_lib.policies import (
    AgingPriority,
    EarliestDeadline,
    Express,
    Fifo,
    Hrrn,
    Priority,
    ShortestJobFirst,
    Weighted,
)
from driftsched_lib.requests import TIERS, Request
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import ContinuousBatching, QueueDepth, StaticBatching, serve
from driftsched_lib.tokens import WhitespaceCounter
from driftsched_lib.workloads import PhaseLoad

POLICIES = [
    Fifo,
    Priority,
    ShortestJobFirst,
    Weighted,
    lambda: Weighted({"premium": 1, "standard": 2, "batch": 1}),
    lambda: AgingPriority(rate=2.0),
    EarliestDeadline,
]
ESTIMATORS = [
    Oracle,
    PaperEstimator,
    lambda: PaperEstimator({"short_qa": 8, "summary": 20, "technical": 1, "report": 30}, alpha=0.5, clip=(0.5, 2)),
    lambda: PaperEstimator(calibrate=False, input_scale=20),
]
OPENINGS = ["What is", "Give a summary of", "A detailed report about", "The architecture and the code of"]

ROUND = dict.fromkeys(COSTS, 0.0) | {"base_s": 0.25, "decode_s": {1: 0.0}}  # iterations end where requests come

limits = st.fixed_dictionaries(
    {
        "max_num_seqs": st.integers(1, 5),
        "max_num_batched_tokens": st.integers(5, 40),
        "max_model_len": st.just(256),
        "block_size": st.sampled_from([2, 16]),
        "kv_blocks": st.sampled_from([20, 60, 1000]),
    }
)
sent = st.tuples(
    st.sampled_from([0.0, 0.0, 0.01, 0.03, 0.25, 2.0]),  # seconds after the one before
    st.sampled_from(OPENINGS),
    st.integers(0, 60),  # more words
    st.sampled_from(TIERS),
    st.integers(1, 40),  # limit
    st.integers(1, 40),  # length, where the limit does not end it
)


def phases_of(drawn):
    loads, number = [], 0
    for pause_s, part in drawn:
        now, requests = 0.0, []
        for gap_s, opening, more, tier, limit, length in part:
            now, number = now + gap_s, number + 1
            requests.append(
                Request(
                    str(number),
                    now,
                    f"{opening} {words(more)}",
                    f"tenant {number % 3}",
                    tier,
                    limit,
                    job_type="kind",
                    pinned_tokens=min(limit, length),
                )
            )
        loads.append(PhaseLoad(f"phase {len(loads)}", pause_s, requests))
    return loads


def both(loads, make_policy, make_estimator, make_engine, make_batching, counter=None):
    """What the compiled loop says, and then what `serve` records: requests, queue samples, spans of phases."""
    records = []

    def scheduler():
        parts = make_policy(), make_estimator(), counter or WhitespaceCounter(), KeywordClassifier()
        return Scheduler(*parts, records.append)

    compiled = serve_compiled(loads, scheduler(), make_engine(), make_batching(), 0.1)
    assert not records
    core, engine, depth, spans = scheduler(), make_engine(), QueueDepth(0.1), []
    for load in loads:
        start_s = engine.now() + load.pause_s
        serve(load.requests, core, engine, make_batching(), start_s, depth)
        spans.append((start_s, engine.now()))
    return compiled, results.requests_table(records), depth.rows, spans


def assert_alike(compiled, table, depths, spans):
    pd.testing.assert_frame_equal(compiled.table(), table, check_exact=True)
    assert compiled.depths == depths and compiled.spans == spans


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([COSTS, ROUND]),
    st.sampled_from([0.5, 1.5]),
    st.lists(st.tuples(st.sampled_from([0.0, 1.5]), st.lists(sent, min_size=1, max_size=25)), min_size=1, max_size=3),
    limits,
    st.sampled_from(POLICIES),
    st.sampled_from(ESTIMATORS),
    st.sampled_from([ContinuousBatching, lambda: StaticBatching(3, 0.25), lambda: StaticBatching(7, 0.0)]),
    st.sampled_from([WhitespaceCounter(), EngineTokens()]),
)
def test_all_is_the_same_to_the_last_bit(costs, words_a_token, drawn, limits, policy, estimator, batching, counter):
    profile = make_profile(costs, **limits).model_copy(update={"words_per_output_token": words_a_token})
    compiled, *recorded = both(
        phases_of(drawn), policy, estimator, lambda: SimulatedEngine(profile), batching, counter=counter
    )
    if compiled is None:
        assert limits["kv_blocks"] < 1000  # of the cases above, only these can run out of blocks
    else:
        assert_alike(compiled, *recorded)


def test_a_window_that_is_full_forgets_as_the_estimators_does():
    rng = np.random.default_rng(0)
    part = [
        (gap, OPENINGS[i % 2], 3, TIERS[i % 3], 400, length)
        for i, (gap, length) in enumerate(
            zip(rng.exponential(0.5, 700), rng.geometric(0.02, 700).tolist(), strict=True)
        )
    ]
    profile = make_profile(max_model_len=512, kv_blocks=1000)
    for base, clip in ((30, (0.25, 3.0)), (1, (0.25, 0.75))):  # the latter expects less than one token

        def estimator(base=base, clip=clip):
            return PaperEstimator({"short_qa": 64, "summary": base}, clip=clip)

        compiled, table, *rest = both(
            phases_of([(0.0, part)]), ShortestJobFirst, estimator, lambda: SimulatedEngine(profile), ContinuousBatching
        )
        assert_alike(compiled, table, *rest)
        held = table.actual_tokens.between(table.estimated_low_tokens, table.estimated_high_tokens)
        assert table.estimated_high_tokens.iloc[-300:].lt(400).any() and 0 < (~held).sum() < len(table) / 3


def test_what_an_estimator_has_learnt_before_is_taken_along():
    def learnt():
        estimator = PaperEstimator()
        for i in range(150):
            one = request(i, prompt=2, output=200)
            one.category = ("short_qa", "summary")[i % 2]
            estimator.observe(one, 1 + i)
        return estimator

    part = [(0.1, OPENINGS[i % 4], i, TIERS[i % 3], 30, 1 + i % 30) for i in range(40)]
    compiled, table, *rest = both(phases_of([(0.0, part)]), Fifo, learnt, engine, ContinuousBatching)
    assert_alike(compiled, table, *rest)
    assert (table.bias != 1.0).any() and table.estimated_low_tokens.iloc[0] > 0


def engine(log_steps=False, **limits):
    return SimulatedEngine(make_profile(**limits), log_steps=log_steps)


def one(**fields):
    return request(**({"request_id": "one", "prompt": 3, "output": 5, "pinned_tokens": 5} | fields))


def compiled(requests, policy=Fifo, estimator=PaperEstimator, on=None, **options):
    parts = policy(), estimator(), WhitespaceCounter(), KeywordClassifier()
    scheduler = Scheduler(*parts, lambda record: None, **options)
    return serve_compiled([PhaseLoad("", 0.0, [*requests])], scheduler, on or engine(), ContinuousBatching())


def test_what_it_does_not_do_is_left_to_serve():
    assert compiled([one()]) is not None
    assert compiled([one()], policy=Express) is None and compiled([one()], policy=Hrrn) is None
    assert compiled([one()], estimator=Kalman) is None
    assert compiled([one()], capacity=5) is None
    assert compiled([one()], admission=admission_check(1.0, None, dict.fromkeys(TIERS, 1.0))) is None
    assert compiled([one()], on=engine(async_scheduling=True)) is None
    assert compiled([one()], on=engine(log_steps=True)) is None
    assert compiled([one()], on=ReplicatedEngine([engine(), engine()], ROUTERS["round_robin"])) is None


@pytest.mark.parametrize(
    "requests",
    [
        [one(deadline_s=9.0)],
        [one(cancel_s=9.0)],
        [one(category="report")],  # classified, or counted, by somebody else
        [one(input_tokens=7)],
        [one(prompt=300)],  # the context never holds it
        [one(prompt=250, output=50, pinned_tokens=50)],  # nor all of this
        [one(), one()],
        [one(arrival_s=float("nan"))],
        [one(prompt=16, output=100, pinned_tokens=100, request_id=i) for i in range(4)],  # KV blocks run out
    ],
)
def test_requests_of_which_serve_has_more_to_say_are_left_to_it(requests):
    assert compiled(requests, on=engine(kv_blocks=20)) is None


def test_the_last_block_decides():
    pair = [one(request_id=i, prompt=16, output=100, pinned_tokens=100) for i in range(2)]  # of 8 blocks each
    assert compiled(pair, on=engine(kv_blocks=16)) is not None
    assert compiled(pair, on=engine(kv_blocks=15)) is None


def test_requests_that_an_estimator_refuses_are_left_to_serve():
    assert compiled([one(pinned_tokens=None)], estimator=Oracle) is None
    assert compiled([one()], estimator=lambda: PaperEstimator({"report": 9})) is None


@pytest.mark.parametrize("batching", ["static", "continuous"])
def test_a_large_grid_is_compiled_and_its_tables_and_manifests_are_the_same(batching, monkeypatch, tmp_path):
    params = Params.load(PAPER_L4, {"requests": 150, "seeds": [1], "policies": ["sjf", "hrrn"], "batching": [batching]})
    called = []

    def spy(*given):
        called.append(serve_compiled(*given))
        return called[-1]

    monkeypatch.setattr("driftsched_lib.compiled.serve_compiled", spy)
    for out, least in (("one", 10**9), ("other", 1)):
        monkeypatch.setattr(experiment, "COMPILED_FROM", least)
        experiment.run_grid(params, tmp_path / out, jobs=1)
    assert [served is None for served in called] == [run.policy.name == "hrrn" for run in params.runs()]
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    assert one == other and len(one) > 3 * len(called)
    for folder in results.run_folders(tmp_path / "one"):
        mine, theirs = (results.load_manifest(tmp_path / out / folder.name) for out in ("one", "other"))
        assert {**mine, "started": 0, "finished": 0} == {**theirs, "started": 0, "finished": 0}
