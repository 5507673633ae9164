"""Drift scenarios: seeded, made as they say, in both forms; and the lab's measures, by hand."""

from functools import partial
from math import log

import numpy as np
import pandas as pd
import pytest

from driftsched_lib.estimators import ESTIMATORS, Kalman, Oracle, PaperEstimator, Pooled
from driftsched_lib.requests import BASE_TOKENS
from driftsched_lib.studies import drift_lab as lab
from driftsched_lib.studies.compare import Interval
from driftsched_lib.workloads import drift
from driftsched_lib.workloads.drift import FACTOR, SCENARIOS, SPREAD, drifted
from driftsched_lib.workloads.params import WorkloadParams
from driftsched_lib.workloads.prompts import TOPIC_FACTORS
from driftsched_lib.workloads.synthetic import make_load


def load_of(label_prefix=True, requests=600):
    load = make_load(WorkloadParams(label_prefix=label_prefix), requests, 1, 1.0)
    return [request for phase in load for request in phase.requests]


def lengths(requests):
    return np.array([request.fixed_output_tokens for request in requests], dtype=float)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("form", ["lengths", "natural"])
@pytest.mark.parametrize("label_prefix", [True, False])
def test_number_order_and_times_stay_and_a_seed_gives_the_same_again(name, form, label_prefix):
    load = load_of(label_prefix)
    changed = drifted(load, name, 7, BASE_TOKENS, form)
    same = [[(r.request_id, r.arrival_s, r.phase) for r in requests] for requests in (changed, load)]
    assert same[0] == same[1]
    assert changed == drifted(load_of(label_prefix), name, 7, BASE_TOKENS, form)
    drawn = form == "lengths" or name not in ("stationary", "abrupt", "hotter")
    assert (changed != drifted(load, name, 8, BASE_TOKENS, form)) == drawn
    for i, request in enumerate(changed):
        brief = request.tenant == "tenant-brief" and (name == "low_limits" or i >= 300)
        usual = BASE_TOKENS[request.job_type]
        assert request.max_tokens == (round(0.1 * usual) if brief else usual) or (name == "health_probes" and i >= 300)
        assert request.prompt.startswith("Request ID") == label_prefix
        assert (f"Tenant {request.tenant}. Job type {request.job_type}. " in request.prompt) == label_prefix
        fixed = request.fixed_output_tokens
        assert fixed is None if form == "natural" else 1 <= fixed <= request.max_tokens


def test_a_stationary_load_is_lognormal_around_what_category_topic_and_tenant_make_of_it():
    load = load_of(requests=1500)
    medians = lengths(drifted(load, "stationary", 7, BASE_TOKENS, spread=0.0))
    changed = drifted(load, "stationary", 7, BASE_TOKENS)
    request = next(r for r in changed if r.tenant == "tenant-premium")  # in the middle of the names
    topic = max((topic for topic in TOPIC_FACTORS if topic in request.prompt), key=len)
    expected = drift.MEDIAN_SHARE * request.max_tokens * TOPIC_FACTORS[topic]
    assert medians[changed.index(request)] == pytest.approx(expected, abs=0.5)
    assert request.prompt == load[changed.index(request)].prompt
    ratios = np.log(lengths(changed) / medians)[medians > 50]
    assert np.mean(ratios) == pytest.approx(0, abs=0.03) and np.std(ratios) == pytest.approx(SPREAD, rel=0.1)


EARLY, MIDDLE, LATE = slice(0, 450), slice(550, 950), slice(800, 1500)


@pytest.mark.parametrize(
    ("name", "column", "value", "part", "share"),
    [
        ("mix_shift", "job_type", "short_qa", EARLY, 0.4),
        ("mix_shift", "job_type", "short_qa", LATE, 0.1),
        ("new_tenant", "tenant", "tenant-new", EARLY, 0),
        ("new_tenant", "tenant", "tenant-new", LATE, 0.25),
        ("noisy_neighbour", "tenant", "tenant-noisy", EARLY, 0),
        ("noisy_neighbour", "tenant", "tenant-noisy", MIDDLE, 0.6),
        ("noisy_neighbour", "job_type", "report", MIDDLE, 0.72),
        ("low_limits", "tenant", "tenant-brief", EARLY, 0.25),
        ("limit_change", "tenant", "tenant-brief", EARLY, 0.25),
        ("health_probes", "max_tokens", 1, LATE, 0.5),
    ],
)
def test_who_asks_for_what_changes(name, column, value, part, share):
    found = [getattr(request, column) for request in drifted(load_of(requests=1500), name, 7, BASE_TOKENS)[part]]
    assert found.count(value) / len(found) == pytest.approx(share, abs=0.06 if share else 0)


@pytest.mark.parametrize("tiers", [["premium", "standard", "batch"], ["gold", "silver", "tin", "scrap"], ["only"]])
def test_a_new_tenant_is_of_the_middle_tier_and_a_noisy_one_of_the_last(tiers):
    for name, tier in (("new_tenant", tiers[len(tiers) // 2]), ("noisy_neighbour", tiers[-1])):
        changed = drifted(load_of(), name, 7, BASE_TOKENS, tiers=tiers)
        assert {request.tier for request in changed if request.tenant == drift.NEWCOMERS[name]} == {tier}


def test_wording_follows_the_drift():
    def style_shares(name, part):
        prompts = [request.prompt for request in drifted(load_of(), name, 7, BASE_TOKENS, "natural")][part]
        return [np.mean([prompt.endswith(style) for prompt in prompts]) for style in ("Be brief.", "Go into depth.")]

    assert style_shares("stationary", slice(None)) == [0, 0]
    assert style_shares("gradual", slice(-100, None)) == [0, 1]
    terse, verbose = style_shares("recurring", slice(None))
    assert terse == pytest.approx(0.32, abs=0.08) and verbose == pytest.approx(0.32, abs=0.08)  # mean of |sin| / 2


def test_a_hotter_half_is_sampled_at_another_temperature_or_spreads_more():
    load = load_of(requests=1500)
    made = [request.temperature for request in drifted(load, "hotter", 7, BASE_TOKENS, "natural")]
    assert made == [None] * 750 + [drift.HOT] * 750
    assert [request.temperature for request in drifted(load, "hotter", 7, BASE_TOKENS)] == [None] * 1500
    medians = lengths(drifted(load, "hotter", 7, BASE_TOKENS, spread=0.0))
    logs = np.log(lengths(drifted(load, "hotter", 7, BASE_TOKENS, spread=0.1)) / medians)
    early, late = logs[:750][medians[:750] > 50], logs[750:][medians[750:] > 50]
    assert (np.std(early), np.std(late)) == pytest.approx((0.1, 0.1 * drift.HOT_SPREAD), rel=0.1)


@pytest.mark.parametrize(
    ("scenario", "factor", "part", "expected"),
    [
        ("abrupt", FACTOR, (0, 300), 1),
        ("abrupt", FACTOR, (300, 600), {"summary": FACTOR, "report": 1 / FACTOR, "short_qa": 1}),
        ("gradual", FACTOR, (0, 150), 1),
        ("gradual", FACTOR, (450, 600), FACTOR),
        ("recurring", FACTOR, (32, 44), FACTOR),  # of 150 a day: the middle of the first day and of the first night
        ("recurring", FACTOR, (107, 119), 1 / FACTOR),
        ("recurring", FACTOR, (482, 494), FACTOR),
        ("new_tenant", FACTOR, (0, 600), 1),  # of the others
        (partial(drift.abrupt, at=0.2, change={"summary": -1.0}), 3.0, (0, 120), 1),
        (partial(drift.abrupt, at=0.2, change={"summary": -1.0}), 3.0, (120, 600), {"summary": 1 / 3, "report": 1}),
    ],
)
def test_lengths_change_when_where_and_as_much_as_is_said(scenario, factor, part, expected):
    load, part = load_of(), slice(*part)
    still = lengths(drifted(load, "stationary", 7, BASE_TOKENS, spread=0.0))
    changed = drifted(load, scenario, 7, BASE_TOKENS, spread=0.0, factor=factor)
    free = [r.fixed_output_tokens < r.max_tokens and r.tenant != "tenant-new" for r in changed]
    ratios, categories = lengths(changed) / still, np.where(free, [r.job_type for r in load], "")
    for category, ratio in (expected if isinstance(expected, dict) else dict.fromkeys(BASE_TOKENS, expected)).items():
        found = ratios[part][categories[part] == category]
        assert len(found) and found == pytest.approx(ratio, rel=1e-6 if ratio == 1 else 0.1)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "oracle"])
@pytest.mark.parametrize("scenario", ["low_limits", "limit_change", "health_probes"])
def test_lower_limits_move_the_labs_probe_by_less_than_a_tenth(scenario, name):
    """Its mean in the second half, against replays in which the same outputs have their usual limits."""

    def mean_log(seed, **usual):
        load = lab.lab_load(lambda moment: SCENARIOS[scenario](moment) | usual, seed, requests=1200)
        return np.log(lab.replay(ESTIMATORS[name](), load).probe_tokens[600:]).mean()

    moved = np.mean([mean_log(seed) - mean_log(seed, limit=1.0) for seed in (1, 2, 3)])
    assert abs(moved) < log(1.1)


def test_what_cannot_drift_is_refused():
    load = load_of(requests=10)
    with pytest.raises(ValueError, match="scenario: 'sudden' is unknown"):
        drifted(load, "sudden", 1, BASE_TOKENS)
    load[0].prompt = "the the the"
    with pytest.raises(ValueError, match="request '0': drift needs the project's own prompts"):
        drifted(load, "abrupt", 1, BASE_TOKENS)


def test_a_replay_estimates_before_it_observes_and_observes_with_the_delay():
    class Log(Oracle):
        def estimate(self, request):
            calls.append(int(request.request_id))
            return super().estimate(request)

        def observe(self, request, length):
            calls.append(-int(request.request_id) - 1)

    load = lab.lab_load("stationary", seed=1, requests=4)
    for delay, expected in ((0, [0, -1, 1, -2, 2, -3, 3, -4]), (2, [0, 1, 2, -1, 3, -2])):
        calls = []
        table = lab.replay(Log(), load, delay=delay)
        assert [call for i, call in enumerate(calls) if i == 0 or call < 0 or calls[i - 1] != call] == expected
    assert table.estimated_tokens.tolist() == table.actual_tokens.tolist() == [r.fixed_output_tokens for r in load]


def test_accuracy_by_hand():
    table = {"actual_tokens": [10, 20, 30, 40], "estimated_tokens": [12, 18, 45, 40]}
    table |= {"low_tokens": [9.0, 19.0, 31.0, 20.0], "high_tokens": [11.0, 25.0, 50.0, 40.0]}
    got = lab.accuracy(pd.DataFrame(table))
    assert got.mae_tokens == (2 + 2 + 15) / 4 and got.rmse_tokens == pytest.approx(((4 + 4 + 225) / 4) ** 0.5)
    assert got.mape == pytest.approx((0.2 + 0.1 + 0.5) / 4) and got.bias_tokens == (2 - 2 + 15) / 4
    assert got.kendall_tau == pytest.approx((5 - 1) / 6)  # of six pairs, one is in the wrong order
    assert got.coverage == 0.75 and got.width_tokens == (2 + 6 + 19 + 20) / 4


def test_tables_of_many_replays():
    assert lab.mean_interval([1.0, 2.0, 3.0]).high == pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3)  # t(0.975, 2), sd 1
    assert (lab.mean_interval([1.0, 2.0, 3.0]).estimate, lab.mean_interval([1.0]).low) == (2.0, -np.inf)
    table = lab.replays({"kalman": Kalman, "oracle": Oracle}, ["stationary", "abrupt"], range(2), requests=600)
    assert len(table) == 2 * 2 * 2 * 600
    errors = lab.accuracies(table).mae_tokens.unstack("seed")
    assert set(errors.index) == {(s, e) for s in ("stationary", "abrupt") for e in ("kalman", "oracle")}
    assert errors.loc["stationary", "oracle"].max() == 0 and errors.loc["abrupt", "kalman"].min() > 10
    coverage = lab.coverage_table(lab.over_time(table))
    assert coverage.least["stationary", "oracle"] == 1 and coverage.within["stationary", "oracle"] == 0
    noise = lab.steady_noise(table[table.scenario == "stationary"])
    assert 0 < noise["kalman"].estimate < 0.3


def paths_of(errors, category="summary", scenario="abrupt", estimator="ema"):
    """Rows of `probe_paths`: a list of log errors a seed, by observation."""
    runs = [pd.DataFrame({"seed": seed, "log_error": run}) for seed, run in enumerate(errors)]
    rows = pd.concat(run.assign(position=run.index, observations=run.index) for run in runs)
    return rows.assign(scenario=scenario, estimator=estimator, category=category)


def test_recovery_by_hand():
    """Of a change, 0.9 ** k is left after k observations; what comes later, noise, does not count."""
    decay = [0.9**k for k in range(20)]
    tolerance = np.expm1(0.5)  # 0.9 ** 6 > 0.5 > 0.9 ** 7
    one_seed = Interval(7, 0, np.inf)
    assert lab.observations_to_recover(paths_of([decay]), tolerance)["abrupt", "ema"] == one_seed
    noisy = [*decay[:10], 5.0, *decay[11:]]
    assert lab.observations_to_recover(paths_of([noisy] * 3), tolerance)["abrupt", "ema"].estimate == 7
    slow = [0.95**k for k in range(20)]  # 0.95 ** 13 > 0.5 > 0.95 ** 14
    both = pd.concat([paths_of([decay]), paths_of([slow], "report")])
    assert lab.observations_to_recover(both, tolerance)["abrupt", "ema"].estimate == 14
    assert lab.observations_to_recover(paths_of([[1.0] * 20]), tolerance)["abrupt", "ema"].estimate == np.inf
    mixed = lab.observations_to_recover(paths_of([decay] * 5 + [slow] * 5), tolerance)["abrupt", "ema"]
    assert 7 <= mixed.low < mixed.estimate < mixed.high <= 14


def test_a_path_counts_what_was_observed_of_the_group_since_the_change():
    table = lab.replays({"ema": PaperEstimator}, ["abrupt"], [1], requests=40).assign(category="summary")
    table["probe_tokens"] = [100.0] * 20 + [300.0] * 10 + [150.0] * 10
    paths = lab.probe_paths(table, change=20)
    assert paths.observations.tolist() == list(range(20))
    assert np.exp(paths.log_error).round(6).tolist() == [2.0] * 10 + [1.0] * 10
    assert lab.probe_paths(table, change=20, delay=5).observations.tolist() == [0] * 5 + list(range(15))
    newcomer = table.assign(scenario="new_tenant", tenant=["tenant-a", "tenant-new"] * 20)
    assert lab.probe_paths(newcomer, change=20).observations.tolist() == [i // 2 for i in range(20)]
    late = table.assign(estimated_tokens=110, actual_tokens=100)
    assert lab.settled_bias(late, change=20)["abrupt", "ema"].estimate == pytest.approx(0.1)


def test_the_probe_is_the_newcomers_where_they_are_the_change():
    table = lab.replays({"pooled": Pooled}, ["new_tenant"], [1], requests=800)
    late = table[(table.category == "summary") & (table.position > 700)]
    old = late[late.tenant != "tenant-new"].estimated_tokens.mean()
    assert late.probe_tokens.mean() > 1.3 * old
