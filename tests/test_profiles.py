"""Profiles: files that are wrong are named, and a fit finds the costs that made the run."""

import json

import numpy as np
import pandas as pd
import pytest
from simulation import COSTS, make_profile, request, simulated

from driftsched_lib.engines.base import STEP_COLUMNS
from driftsched_lib.engines.fit import fit_costs, iterations, predicted_s, seen_by_clients
from driftsched_lib.engines.profile import Profile, StepCost
from driftsched_lib.errors import ParamsError
from driftsched_lib.serving import StaticBatching
from driftsched_lib.validation import PROJECT

SINGLE_COSTS = COSTS.keys() - {"decode_s"}
COMMITTED = sorted((PROJECT / "data" / "profiles").glob("*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_profiles_load_and_say_where_they_come_from(path):
    provenance = Profile.load(path).provenance
    assert provenance.fit is not None if provenance.measured else provenance.derivation


def test_the_derived_l4_is_of_the_scale_of_the_papers_rough_model():
    step = Profile.load(PROJECT / "data" / "profiles" / "l4-qwen1.5-1.8b.json").step
    batch, context = 32, 250
    seconds = step.decoding_s(batch) + batch * context * step.per_context_token_s
    assert seconds == pytest.approx(0.0215 + batch * 0.0002, rel=0.05)


def test_a_profile_survives_its_file_and_other_limits_are_checked(tmp_path):
    make_profile().save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == make_profile()
    assert make_profile().with_limits(max_num_seqs=8).limits.max_num_seqs == 8
    with pytest.raises(ValueError, match="max_num_seqs"):
        make_profile().with_limits(max_num_seqs=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["step"].pop("base_s"), r"step\.base_s: is missing"),
        (lambda values: values["step"].update(decode_s={1: -1e-3}), r"step\.decode_s\.1: .*greater than or equal"),
        (lambda values: values["step"].update(base_s=0.0), r"step\.base_s: .*greater than"),
        (lambda values: values["step"].update(base_ms=1.0), r"step\.base_ms: unknown key: .* mean 'base_s'"),
        (lambda values: values["limits"].update(kv_blocks=0), r"limits\.kv_blocks: "),
        (lambda values: values["limits"].update(max_num_batched_tokens=2), r"limits: .*at least max_num_seqs"),
        (lambda values: values.pop("provenance"), r"provenance: is missing"),
    ],
)
def test_a_wrong_profile_names_file_and_field(tmp_path, change, message):
    values, path = make_profile().model_dump(), tmp_path / "wrong.json"
    change(values)
    for text, why in ((json.dumps(values), message), ("not JSON", "invalid JSON")):
        path.write_text(text)
        with pytest.raises(ParamsError, match=rf"^{path}: {why}"):
            Profile.load(path)
    with pytest.raises(ParamsError, match="cannot be read"):
        Profile.load(tmp_path / "nowhere.json")


def run(n=150, batching=None, costs=COSTS, **limits):
    """The tables `steps` and `requests` of a simulated run with idle stretches."""
    rng = np.random.default_rng(1)
    arrivals = rng.exponential(1 / 6.0, n).cumsum().tolist()
    load = [request(i, arrival_s, *rng.integers(1, 40, 2).tolist()) for i, arrival_s in enumerate(arrivals)]
    engine, records = simulated(load, make_profile(costs, **limits), log_steps=True, batching=batching)
    requests = pd.DataFrame(records.values()).convert_dtypes()  # as a run's folder gives them back
    return pd.DataFrame(engine.steps, columns=STEP_COLUMNS), requests


@pytest.fixture(scope="module")
def held():
    return iterations(*run())


NO_LINE = {"decode_s": {1: 1e-4, 2: 9e-4, 3: 2e-4, 4: 5e-4}}


@pytest.mark.parametrize(
    ("batching", "changes", "limits"),
    [(None, {}, {}), (None, NO_LINE, {}), (StaticBatching(4, 0.01), {}, {}), (None, {}, {"async_scheduling": True})],
    ids=["continuous", "no line", "static", "asynchronous"],
)
def test_a_fit_finds_the_costs_that_made_the_run(batching, changes, limits):
    steps, requests = run(batching=batching, costs=COSTS | changes, **limits)
    held, true = iterations(steps, requests), StepCost(**COSTS | changes)
    assert held.seconds.to_numpy() == pytest.approx(steps.duration_s.to_numpy())
    costs, error = fit_costs(held)
    for name in SINGLE_COSTS:
        assert getattr(costs, name) == pytest.approx(COSTS[name], rel=1e-6)
    decode_s = {n: true.decoding_s(n) - true.base_s for n in range(1, 5)}
    assert costs.decode_s == pytest.approx(decode_s, rel=1e-6)
    assert error.iterations == len(steps) and error.median_relative_error < 1e-6 and error.r2 > 1 - 1e-9


def test_a_fit_finds_the_costs_of_launching():
    steps, requests = run(launch_bound=True, async_scheduling=True)
    held = iterations(steps, requests, launch_bound=True)
    assert len(steps) / 2 < len(held) < len(steps)  # the first two after idleness share their time
    costs, _ = fit_costs(held)
    assert predicted_s(held, costs) == pytest.approx(held.seconds.to_numpy(), rel=1e-6)
    assert costs.decoding_s(1) == pytest.approx(COSTS["base_s"] + COSTS["decode_s"][1], rel=1e-6)
    for name in SINGLE_COSTS - {"base_s"}:
        assert getattr(costs, name) == pytest.approx(COSTS[name], rel=1e-6)


def test_slow_iterations_raise_the_level_of_a_fit_and_not_its_proportions(held):
    rng = np.random.default_rng(2)
    slow = held.assign(seconds=held.seconds * rng.normal(1, 0.01, len(held)))
    slow.loc[rng.random(len(held)) < 0.05, "seconds"] += 0.05  # something else had the processor
    costs, error = fit_costs(slow)
    level = slow.seconds.sum() / held.seconds.sum()
    assert costs.base_s == pytest.approx(level * COSTS["base_s"], rel=0.02)
    assert costs.per_prefill_token_s == pytest.approx(level * COSTS["per_prefill_token_s"], rel=0.1)
    assert error.slow_share == pytest.approx(1 - 1 / level, rel=0.05)


def test_no_cost_is_negative_and_what_decoding_sequences_cannot_be_told_apart_from_is_an_iterations(held):
    costs, _ = fit_costs(held.assign(seconds=0.01 - 1e-6 * held.context_tokens))
    assert costs.per_context_token_s == 0.0
    assert fit_costs(held)[0].base_s > 0
    without_base = held.assign(seconds=held.seconds - COSTS["base_s"] + 0.01 * (held.decode_seqs > 0))
    costs, _ = fit_costs(without_base[(held.decode_seqs > 0) | (held.prefill_tokens < 5)])
    assert costs.base_s > 0.005 and min(costs.decode_s.values()) == 0


def test_the_costs_of_a_server_are_found_in_what_its_clients_see():
    steps, requests = run(600)
    held = iterations(steps, requests)
    costs, _ = fit_costs(seen_by_clients(requests))
    assert costs.base_s == pytest.approx(COSTS["base_s"], rel=0.15)
    assert predicted_s(held, costs).sum() == pytest.approx(held.seconds.sum(), rel=0.05)
    wrong_by = np.abs(predicted_s(held, costs) / held.seconds - 1)
    assert np.median(wrong_by) < 0.05 and np.quantile(wrong_by, 0.9) < 0.15


def test_what_clients_see_is_the_mean_over_a_requests_iterations():
    _, requests = run(60)
    seen = seen_by_clients(requests)
    done = requests[requests.output_tokens > 1].astype({"first_token_s": float, "finish_s": float})
    for row, mine in zip(seen.itertuples(), done.itertuples(), strict=True):
        at = np.linspace(mine.first_token_s, mine.finish_s, 20_001)[1:-1]
        first, last = (done[name].to_numpy()[:, None] for name in ("first_token_s", "finish_s"))
        inside = (first < at) & (at < last)
        made = (at - first) / (last - first) * (done.output_tokens.to_numpy(float)[:, None] - 1)
        context = np.where(inside, done.prompt_tokens.to_numpy(float)[:, None] + 1 + made, 0.0).sum(axis=0)
        assert row.decode_seqs == pytest.approx(inside.sum(axis=0).mean(), rel=1e-3)
        assert row.context_tokens == pytest.approx(context.mean(), rel=1e-3)


def test_decoding_costs_a_straight_line_between_numbers_and_in_proportion_beyond():
    step = make_profile(COSTS | {"decode_s": {8: 4e-3, 2: 2e-3}}).step
    beyond_base = [step.decoding_s(n) - step.base_s for n in (0, 1, 2, 5, 8, 16)]
    assert beyond_base == pytest.approx([0, 1e-3, 2e-3, 3e-3, 4e-3, 8e-3])


def test_iterations_that_do_not_tell_what_one_costs_and_runs_with_preemptions_are_refused(held):
    with pytest.raises(ValueError, match="do not tell what one costs: serve more requests"):
        fit_costs(held.assign(seconds=1e-4 * held.prefill_tokens))
    for n in (0, 1, 19):
        with pytest.raises(ValueError, match="are too few"):
            fit_costs(held[:n])
    steps, requests = run(kv_blocks=5)
    assert steps.preemptions.sum() > 0
    with pytest.raises(ValueError, match="KV cache to spare"):
        iterations(steps, requests)
