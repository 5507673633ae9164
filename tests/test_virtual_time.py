"""Real vLLM in virtual time: it serves as the simulator does, to the nanosecond, and the same on every run."""

import json
from contextlib import closing
from dataclasses import asdict
from random import Random

import pandas as pd
import pytest
from simulation import contents, make_profile, request, served

from driftsched_lib.engines.base import STEP_COLUMNS
from driftsched_lib.engines.load import load_engine
from driftsched_lib.engines.params import EngineParams
from driftsched_lib.engines.profile import Profile
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.errors import ParamsError
from driftsched_lib.experiments import results
from driftsched_lib.experiments.grid import run_grid
from driftsched_lib.experiments.params import Params
from driftsched_lib.explorer import Explorer
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import TIERS
from driftsched_lib.serving import ContinuousBatching, StaticBatching
from driftsched_lib.validation import PROJECT

MODELS = PROJECT / "data" / "models"
L4 = PROJECT / "data" / "profiles" / "l4-qwen1.5-1.8b.json"
BATCHINGS = {"continuous": ContinuousBatching, "static": lambda: StaticBatching(5, 0.05)}


@pytest.fixture
def engine(tmp_path):
    """One layer of random weights, which cuts prompts into chunks and runs out of KV blocks."""
    pytest.importorskip("vllm")
    from driftsched_lib.engines.vllm import VllmEngine

    model, small = tmp_path, {"hidden_size": 32, "intermediate_size": 32}
    small |= {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    shape = json.loads((MODELS / "llama-130m-shape" / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(shape | small))
    args = {"max_model_len": 256, "max_num_seqs": 4, "max_num_batched_tokens": 40, "num_gpu_blocks_override": 9}
    args |= {"block_size": 32, "load_format": "dummy", "tokenizer": str(MODELS / "driftsched-tiny")}
    args |= {"dtype": "float32", "enforce_eager": True, "enable_prefix_caching": False}
    with closing(VllmEngine(str(model), args, 0.7, make_profile(max_num_seqs=2))) as engine:  # only its costs count
        yield engine


def random_load(random, n=32):
    """Requests of fixed and of limited lengths, some of which give up or expire, in bursts and after pauses."""
    now, load = 0.0, []
    for i in range(n):
        now += random.choice([0.0, 0.0, 0.0, 0.1, 0.5])
        output = random.randint(1, 80)
        changes = {
            "cancel_s": random.choice([None, None, None, now + random.random()]),
            "deadline_s": random.choice([None, None, now + random.random() / 2]),
            "fixed_output_tokens": random.choice([None, output]),
            "tier": random.choice(list(TIERS)),
        }
        load.append(request(i, now, random.randint(1, 90), output, **changes))
        load[-1].tenant = random.choice("abc")
    return load


@pytest.mark.parametrize("batching", BATCHINGS)
def test_vllm_and_the_simulator_serve_alike(engine, batching):
    """Under each policy that need not preempt; the simulator is told where sampled outputs ended."""
    limits, all_records, all_steps = make_profile(**engine.limits.model_dump()), [], []
    for policy in [name for name in POLICIES if not POLICIES[name].preemptive]:
        ended = {}

        def lengths(one, ended=ended):
            output = one.fixed_output_tokens or ended.get(one.request_id) or one.max_tokens
            return engine.count_tokens(one.prompt), output

        simulator, tables = SimulatedEngine(limits, lengths, log_steps=True), []
        engine.restart_clock()
        for one in (engine, simulator):
            records = served(random_load(Random(policy + batching)), one, POLICIES[policy](), BATCHINGS[batching]())
            table = pd.DataFrame(map(asdict, records.values())).set_index("request_id")
            ended.update(table.output_tokens[table.outcome == "completed"].astype(int))
            steps = pd.DataFrame(one.steps, columns=STEP_COLUMNS)
            tables.append((table.drop(columns=["reason", "output_words"]), steps))  # each engine has its own words
        for real, simulated in zip(*tables, strict=True):
            pd.testing.assert_frame_equal(real, simulated, check_dtype=False, rtol=0.0, atol=1e-9, obj=policy)
        all_records.append(tables[0][0])
        all_steps.append(tables[0][1])
    assert set(pd.concat(all_records).outcome) == {"completed", "cancelled", "expired", "failed"}
    steps = pd.concat(all_steps)
    assert steps.preemptions.sum() > 9 and (steps.output_tokens > steps.output_requests).sum() > 9


def test_a_grid_is_the_same_by_any_number_of_jobs_and_its_seconds_are_those_of_whole_lengths(tmp_path):
    """One process serves its last run first, with prompts that the first may have left in the cache."""
    pytest.importorskip("vllm")
    changes = {"engine.profile": str(L4), "workload.output_length": "natural", "measure.cooling_s": 60.0}
    changes |= {"scheduler.policies": "sjf", "scheduler.calibration": True, "scheduler.token_counter": "whitespace"}
    changes["engine.args.enable_prefix_caching"] = True
    params = Params.load(PROJECT / "params" / "smoke.yaml", changes)
    run_grid(params, tmp_path / "first", params.runs()[1:], jobs=1)
    summary = run_grid(params, tmp_path / "first", jobs=1)
    run_grid(params, tmp_path / "again", jobs=2)
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    requests = pd.concat(run.table("requests") for run in results.runs(tmp_path / "first"))
    assert (summary.completed == params.requests).all() and (requests.output_tokens < requests.max_tokens).any()
    step_s = Profile.load(L4).step.decoding_s(1) / params.workload.length_scale
    assert step_s <= results.load_speed(tmp_path / "first").idle_tpot_s < 1.01 * step_s


def test_what_the_explorer_serves_lies_on_what_it_simulates(tmp_path):
    pytest.importorskip("vllm")
    explorer = Explorer(Params.load(PROJECT / "params" / "smoke.yaml", {"requests": 60}), str(L4), tmp_path)
    table = explorer.run_on_vllm("B")
    explorer.engine.close()
    [run] = results.runs(tmp_path / "real")
    real, simulated = (done.set_index("request_id") for done in (run.table("requests"), explorer.served["B"].done))
    columns = ["arrival_s", "dispatch_s", "first_token_s", "finish_s", "prompt_tokens", "estimated_tokens"]
    real = real.loc[simulated.index, columns]
    pd.testing.assert_frame_equal(real, simulated[columns], check_dtype=False, rtol=0.0, atol=1e-6)
    assert (table["P99, real"] == table["P99, simulated"]).all() and run.manifest["params"]["engine"]["profile"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "data/profiles/none.json"}, "engine.profile: data/profiles/none.json: cannot be read"),
        ({"profile": "data/profiles/h100-qwen1.5-1.8b-shape.json"}, "virtual time is synchronous"),
        ({"profile": str(L4), "args": {"async_scheduling": True}}, "virtual time is synchronous"),
    ],
)
def test_what_virtual_time_cannot_be_is_refused(changes, message):
    pytest.importorskip("vllm")
    with pytest.raises(ParamsError, match=message):
        load_engine(EngineParams(**changes))
