"""A real vLLM server, scheduled by the plug-in: experiments, notebooks and vLLM's own client against it."""

import pandas as pd
import papermill
import pytest
import yaml
from helpers import make_scheduler, params_at

from driftsched_lib import results, run_grid
from driftsched_lib.engines.load import load_engine
from driftsched_lib.engines.vllm_commands import TenantLoad, scrape, send, serve_vllm
from driftsched_lib.errors import ParamsError
from driftsched_lib.experiments.profiling import profile_of_run
from driftsched_lib.requests import Request
from driftsched_lib.serving import ContinuousBatching, serve
from driftsched_lib.studies.fidelity import replay
from driftsched_lib.validation import PROJECT
from driftsched_lib.workloads.prompts import build_prompt

MODEL = "data/models/driftsched-tiny"


@pytest.fixture(scope="module")
def server():
    """The URL of a real vLLM server with the embedded model, scheduled by the plug-in as `params/plugin.yaml` says."""
    arguments = ["--enforce-eager", "--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "8"]
    arguments += ["--scheduler-cls", "driftsched_lib.vllm_plugin.DriftSchedScheduler"]
    with serve_vllm(MODEL, *arguments, env={"DRIFTSCHED_CONFIG": "params/plugin.yaml"}) as url:
        yield url


def test_a_grid_on_a_real_server(server, tmp_path):
    """Two policies, both batchings: pinned lengths, times in order, tokens as vLLM counts them."""
    params = params_at(server, scheduler__vary_estimates_for=[], scheduler__token_counter=["tokenizer"])
    summary = run_grid(params, tmp_path)
    assert (summary.completed == params.requests).all() and len(summary) == len(params.runs())
    requests = results.load(tmp_path)
    assert (requests.output_tokens == requests.max_tokens).all() and (requests.prompt_tokens > 0).all()
    assert (requests.arrival_s <= requests.dispatch_s).all() and (requests.dispatch_s < requests.first_token_s).all()
    assert (requests.first_token_s <= requests.finish_s).all() and (requests.output_words > 0).all()
    several = requests[requests.output_tokens > 2]
    mean_itl_s = (several.finish_s - several.first_token_s) / (several.output_tokens - 1)
    streamed = several.batching == "continuous"
    longest_itl_s = several.longest_itl_s.fillna(0)  # all came in one part, as they may on a busy machine
    assert (longest_itl_s >= mean_itl_s - 1e-5)[streamed].all() and (longest_itl_s > 0).any()
    again = run_grid(params, tmp_path)
    pd.testing.assert_frame_equal(again, summary)


def test_a_prompt_has_the_length_that_the_load_gives(server):
    requests = [Request(str(n), 0.0, "What is DNS?", "acme", "premium", 2, prompt_tokens=n) for n in (1, 50)]
    scheduler, records = make_scheduler()
    serve(requests, scheduler, load_engine(params_at(server).engine), ContinuousBatching())
    assert {record.request_id: record.prompt_tokens for record in records} == {"1": 1, "50": 50}


def test_a_notebook_of_the_paper_runs_on_a_server(server, tmp_path):
    params, notebooks = tmp_path / "server.yaml", PROJECT / "notebooks"
    grid = params_at(server, scheduler__batching=["static"], scheduler__vary_estimates_for=[])
    params.write_text(yaml.safe_dump(grid.model_dump()))
    settings = {"params_file": str(params), "out": str(tmp_path / "runs")}
    there, executed = notebooks / "02_scheduler_comparison.ipynb", tmp_path / "executed.ipynb"
    papermill.execute_notebook(there, executed, settings, cwd=notebooks, progress_bar=False)
    assert len(results.runs(tmp_path / "runs")) == len(grid.runs())


def test_what_a_server_served_is_profiled(server, tmp_path):
    """As vLLM has it: its limits from what it tells, its costs from what the client sees."""
    fifo = {"policies": ["fifo"], "vary_estimates_for": [], "batching": ["continuous"]}
    run_grid(params_at(server, requests=100, **{f"scheduler__{key}": value for key, value in fifo.items()}), tmp_path)
    [run] = results.runs(tmp_path)
    profile, done = profile_of_run(run), run.table("requests")
    limits = profile.limits
    assert (limits.max_num_seqs, limits.max_model_len) == (8, 1024)
    assert limits.kv_blocks * limits.block_size > 8 * limits.max_model_len
    pace_s = ((done.finish_s - done.first_token_s) / (done.output_tokens - 1))[done.output_tokens > 1]
    assert profile.step.base_s < pace_s.mean()
    served_s, simulated_s = ((table.finish_s - table.dispatch_s).mean() for table in (done, replay(run, profile)))
    assert 2 / 3 < simulated_s / served_s < 3 / 2  # measured: 0.94 to 0.96, on a busy machine too


def prompts(n, **output_tokens):
    """Prompts and output lengths of these categories in turn."""
    some = [
        (build_prompt(category, "DNS", i % 5), tokens) for i in range(n) for category, tokens in output_tokens.items()
    ]
    return some[:n]


def test_vllms_own_benchmark_client_is_served_and_the_metrics_say_how(server):
    """Three tenants at once against a real server: all answered, and counted at /metrics beside vLLM's own."""
    loads = [
        TenantLoad("assistant", "premium", 50.0, prompts(15, short_qa=4, summary=8)),
        TenantLoad("../editor", "standard", 50.0, prompts(10, summary=8, technical=12)),
        TenantLoad("crawler", "batch", 50.0, prompts(20, report=16)),
    ]
    before = scrape(server).set_index(["name", "labels"]).value
    requests = send(server, MODEL, loads)
    after = scrape(server).set_index(["name", "labels"]).value
    assert (requests.error == "").all(), requests.error.unique()
    assert requests.tenant.value_counts().to_dict() == {"crawler": 20, "assistant": 15, "../editor": 10}
    assert (requests.ttft_s > 0).all() and (requests.ttft_s <= requests.e2e_s + 1e-6).all()

    def grown(name, labels):
        return after[name, labels] - before.get((name, labels), 0.0)

    for load in loads:
        assert grown("driftsched_requests_total", f"outcome=completed, tier={load.tier}") >= len(load.prompts)
        assert grown("driftsched_queue_wait_seconds_count", f"tier={load.tier}") >= len(load.prompts)
        assert after["driftsched_queue_depth", f"tier={load.tier}"] == 0
    for step in ("submit", "dispatch", "learn"):
        assert grown("driftsched_decision_seconds_count", f"step={step}") >= 45
    assert grown("driftsched_generated_tokens_total", "category=report") > 0
    assert {name for name, _ in after.index} >= {"driftsched_bias", "driftsched_estimate_error_tokens_sum"}
    assert len(scrape(server, "vllm:")) > 100


def test_a_server_without_the_model_is_refused_before_any_work(server, tmp_path):
    with pytest.raises(ParamsError, match=f"serves {MODEL} and no other"):
        run_grid(params_at(server, engine__model="other"), tmp_path)
    assert not list(tmp_path.glob("*/manifest.json"))
