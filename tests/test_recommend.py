"""A ranking says what is best, by how much, and with which settings to have it."""

import json
import shlex

import pandas as pd
import pytest
import yaml
from simulation import PAPER_L4, SMALL

from driftsched_lib import Params, results
from driftsched_lib.errors import ParamsError
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import TIERS
from driftsched_lib.studies import recommend
from driftsched_lib.validation import PROJECT
from driftsched_lib.vllm_plugin.settings import PluginSettings
from driftsched_lib.workloads.synthetic import trace_window

ESTIMATES = {"estimators": ["paper", "quantiles"], "calibration": [True], "token_counter": ["tokenizer"]}
GRID = {"scheduler.policies": ["fifo", "sjf", {"aging": {"rate": 0.5}}], "seeds": [1, 2, 3]}
GRID = SMALL | GRID | {f"scheduler.{name}": values for name, values in ESTIMATES.items()}


def by_hand(column):
    values = {"fifo": (10, 12, 14), "sjf": (9, 13, 13.5), "drr": (30, 32, 34)}
    rows = [(policy, seed, values[policy][seed - 1]) for policy in values for seed in (1, 2, 3)]
    return pd.DataFrame(rows, columns=["policy", "seed", column]).assign(estimator="paper")


def trace_of(folder, columns, rows):
    (folder / "trace.csv").write_text("\n".join([f"arrival,prompt_tokens,output_tokens{columns}", *rows]))
    return {"file": str(folder / "trace.csv"), "format": "csv"}


def test_the_best_comes_first_and_others_lie_behind_it_in_the_same_seeds():
    table = recommend.ranked(by_hand("p50_e2e_s"), "p50_e2e_s").set_index("policy")
    assert list(table.index) == ["sjf", "fifo", "drr"]
    assert table.behind["fifo"] == pytest.approx((1 - 1 + 0.5) / 3) and table.behind["sjf"] == 0
    assert table.as_good.to_dict() == {"sjf": True, "fifo": True, "drr": False}
    assert table.against_fifo.to_dict() == pytest.approx({"sjf": (-1 + 1 - 0.5) / 3, "fifo": 0, "drr": 20})
    assert table.against_fifo_low["drr"] == table.against_fifo_high["drr"] == pytest.approx(20)
    assert table.low["fifo"] < 12 < table.high["fifo"]
    without = by_hand("p50_e2e_s").query("policy != 'fifo'")
    assert recommend.ranked(without, "p50_e2e_s").against_fifo.isna().all()


def test_objectives_are_those_of_the_tiers_more_may_be_better_and_one_that_means_nothing_is_refused():
    table = recommend.ranked(by_hand("jain"), "jain").set_index("policy")
    assert list(table.index) == ["drr", "fifo", "sjf"] and table.behind["fifo"] == pytest.approx(20)
    runs = by_hand("premium_slo").assign(premium_slo=float("nan"))
    with pytest.raises(ParamsError, match="premium_slo means nothing"):
        recommend.ranked(runs, "premium_slo")
    assert {"premium_p99_e2e_s", "batch_p99_e2e_s", "premium_slo"} <= set(recommend.objectives())
    own = recommend.objectives({"gold": TIERS["premium"], "steel": TIERS["batch"]})
    assert "steel_p99_e2e_s" in own and "gold_slo" in own and "premium_slo" not in own


@pytest.fixture(scope="module")
def recommended(tmp_path_factory):
    """A grid's parameters, its results folder, its ranking and its runs."""
    params, out = Params.load(PAPER_L4, GRID), tmp_path_factory.mktemp("grid")
    return params, out, *recommend.recommend(params, out, "p50_e2e_s")


@pytest.mark.parametrize("objective", ["p50_e2e_s", "premium_p99_e2e_s", "slo"])
def test_a_grid_is_simulated_and_ranked_and_its_winner_can_be_deployed(objective, recommended, tmp_path):
    params, _, ranking, runs = recommended
    table = recommend.ranked(runs, objective)
    assert objective != "p50_e2e_s" or table.equals(ranking)
    assert len(table) == 4 and len(runs) == 4 * len(params.seeds)
    assert table["mean"].is_monotonic_decreasing if objective == "slo" else table["mean"].is_monotonic_increasing
    for row in table.itertuples():
        (tmp_path / "plugin.yaml").write_text(recommend.plugin_yaml(params, row.policy, row.estimator))
        settings = PluginSettings.load(tmp_path / "plugin.yaml")
        assert (str(settings.policy), str(settings.estimator)) == (row.policy, row.estimator)
        assert settings.tenants == params.workload.tenants and settings.base_tokens == params.workload.max_tokens
    assert yaml.safe_load((tmp_path / "plugin.yaml").read_text())["classifier"] == params.scheduler.classifier


def test_tenants_of_a_trace_are_in_their_tiers_unless_they_have_several(recommended, tmp_path):
    rows = ["0,5,5,acme,premium", "1,5,5,mixed,batch", "2,5,5,mixed,premium", "3,5,5,plain,"]
    trace = trace_of(tmp_path, ",tenant,tier", rows)
    params = recommended[0].changed(workload__trace=trace, requests=4, seeds=[1])
    tenants = yaml.safe_load(recommend.plugin_yaml(params, "fifo", "paper"))["tenants"]
    assert tenants == {"acme": "premium", "plain": "standard"}


def test_on_the_simulator_the_grid_has_the_preemptive_policies_too():
    real = Params.load(PROJECT / "params" / "smoke.yaml", {"scheduler.policies": ["fifo", "edf"]})
    grid = recommend.on_the_simulator(real, PROJECT / "data/profiles/driftsched-tiny-cpu.json")
    names = [policy.name for policy in grid.scheduler.policies]
    preemptive = {name for name, policy in POLICIES.items() if policy.preemptive}
    assert names[:2] == ["fifo", "edf"] and set(names[2:]) == preemptive and len(names) == 2 + len(preemptive)
    assert (grid.engine.kind, grid.engine.args, grid.workload) == ("simulated", {}, real.workload)


def test_windows_that_confirm_share_no_request_with_those_that_ranked(tmp_path):
    trace = trace_of(tmp_path, "", [f"{i},{i + 1},5" for i in range(50)]) | {"skip": 2}
    params = Params.load(PAPER_L4, GRID | {"workload.trace": trace, "requests": 10, "seeds": [1, 2]})
    later = recommend.later_windows(params, 2)
    assert later.seeds == [3, 4]
    windows = [trace_window(which.workload.trace, 10, window)[0] for which in (params, later) for window in (0, 1)]
    assert [tokens for rows in windows for tokens in rows.prompt_tokens] == list(range(3, 43))
    untraced = recommend.later_windows(Params.load(PAPER_L4, SMALL | {"seeds": [1, 5]}), 3)
    assert untraced.seeds == [6, 7, 8] and untraced.workload == Params.load(PAPER_L4, SMALL).workload


@pytest.mark.parametrize(
    ("changes", "objective", "message"),
    [
        ({"scheduler.batching": ["static"]}, "p50_e2e_s", "^scheduler.batching: "),
        ({"workload.queue_timeout_s": 3.0}, "p50_e2e_s", "^workload.queue_timeout_s: "),
        ({"scheduler.estimators": ["paper", "oracle"]}, "p50_e2e_s", "^scheduler.estimators: "),
        ({}, "p50", "objective: 'p50' is unknown"),
    ],
)
def test_what_vllm_could_not_do_and_unknown_objectives_are_refused(changes, objective, message, tmp_path):
    with pytest.raises(ParamsError, match=message):
        recommend.recommend(Params.load(PAPER_L4, GRID | changes), tmp_path, objective)
    assert not list(tmp_path.iterdir())


def test_the_best_two_policies_and_fifo_meet_another_engine_under_one_load(recommended, tmp_path):
    params, out, ranking, _ = recommended
    again = recommend.confirm(params, ranking, tmp_path, "p50_e2e_s", load_of=out)
    assert results.load_speed(tmp_path) == results.load_speed(out)
    best = ranking.drop_duplicates("policy")
    expected = pd.concat([best.head(2), best[best.policy == "fifo"]]).drop_duplicates("policy")
    both = again.merge(expected, on=["policy", "estimator"])
    assert len(both) == len(again) == len(expected) and (both.mean_x == both.mean_y).all()
    # twice the capacity is twice the load
    speed = json.loads((out / results.SPEED).read_text())
    speed["capacity_tokens_per_s"] *= 2
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / results.SPEED).write_text(json.dumps(speed))
    trace = {"file": "data/traces/sample-clients.yaml", "format": "clients", "load_factor": 1.0}
    loaded = params.changed(workload__trace=trace, seeds=[1])
    recommend.confirm(loaded, ranking, tmp_path / "once_out", "p50_e2e_s", load_of=out)
    recommend.confirm(loaded, ranking, tmp_path / "twice_out", "p50_e2e_s", load_of=tmp_path / "twice")
    spans = [results.load(tmp_path / name).arrival_s.max() for name in ("once_out", "twice_out")]
    assert spans[0] == pytest.approx(2 * spans[1], rel=1e-4)


def test_the_command_to_serve_is_one_that_vllm_understands(tmp_path):
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    params = Params.load(PROJECT / "params" / "quick.yaml", {"engine.args.hf_overrides": {"a b": 1}})
    command = recommend.serve_command(params, tmp_path / "my settings.yaml")
    metrics = " PROMETHEUS_MULTIPROC_DIR=$(mktemp -d) "  # else the plug-in's are not at /metrics
    assert command.count(metrics) == 1
    settings, *command = shlex.split(command.replace(metrics, " "))
    assert settings == f"DRIFTSCHED_CONFIG={tmp_path}/my settings.yaml" and command[:2] == ["vllm", "serve"]
    parsed = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(["--model", *command[2:]])
    assert parsed.model == str(PROJECT / params.engine.model) and parsed.scheduler_cls.endswith("DriftSchedScheduler")
    for name, value in params.engine.args.items():
        assert getattr(parsed, name) == value
