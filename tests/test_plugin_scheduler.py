"""The scheduler inside vLLM, asynchronous as on a GPU, driven by a model runner that answers one step late."""

import time
from collections import deque
from random import Random
from types import SimpleNamespace

import pytest
import yaml
from inside_vllm import MODEL, Runner, make_vllm_scheduler, start, storm
from inside_vllm import make_vllm_request as request
from simulation import COSTS, make_profile, served

from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators import PaperEstimator
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import BASE_TOKENS, TIERS, Outcome, Request
from driftsched_lib.vllm_plugin.settings import PluginSettings

BLOCKS = 40


@pytest.fixture(scope="module")
def scheduler():
    limits = {"max_model_len": 512, "max_num_seqs": 8, "max_num_batched_tokens": 64}
    return make_vllm_scheduler("driftsched_lib.vllm_plugin.DriftSchedScheduler", BLOCKS, **limits)


@pytest.fixture
def finish(scheduler):
    """End requests from outside, by the name of a status of vLLM."""
    from vllm.v1.request import RequestStatus

    return lambda names, status="FINISHED_ABORTED": scheduler.finish_requests(names, RequestStatus[status])


def use(scheduler, **settings):
    quick = {"estimator": "paper", "classifier": "keywords"}
    return start(scheduler, PluginSettings.parse(quick | settings, "test"))


@pytest.mark.parametrize(("policy", "n"), {"express": 1000, "fifo": 200, "srpt": 200, "mlfq": 200, "vtc": 200}.items())
def test_nothing_is_lost_or_made_twice_however_it_is_aborted(policy, n, scheduler, finish):
    """Few KV blocks, so vLLM preempts; each ends once, and what ends whole has every token once, in order."""
    records, random, runner = use(scheduler, policy=policy), Random(1), Runner(scheduler)
    load = {}
    for name in map(str, range(n)):
        sent = {"tenant": random.choice("abc"), "category": random.choice(["short_qa", "report"])}
        load[name] = request(name, random.choice([2, 5, 40, 90]), prompt=random.randint(3, 60), **sent)
    ended, aborted = storm(
        *(load, random, 3, lambda: random.choice([1, 1, 10]) * (random.random() < 0.03)),
        *(scheduler.add_request, finish, runner.step, lambda: scheduler.requests or runner.late),
    )
    outcomes = {record.request_id: record.outcome for record in records}
    assert len(records) == len(outcomes) == n and ended | aborted == set(load)
    assert all(outcomes[name] is Outcome.COMPLETED for name in ended - aborted)
    assert all(outcomes[name] is Outcome.CANCELLED for name in aborted - ended) and aborted - ended
    for name in ended - aborted:
        first = runner.made[name][0]
        assert runner.made[name] == list(range(first, first + load[name].max_tokens))
    assert scheduler.core.is_idle and not scheduler.waiting.served and not len(scheduler.waiting)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_order_is_the_simulators_as_requests_come_and_slots_free(policy, scheduler, monkeypatch):
    """Four slots, iterations of a second, requests that come as others run, and estimates that learn on the way."""
    random, clock, base = Random(4), SimpleNamespace(now=0.0), dict.fromkeys(BASE_TOKENS, 9)
    load = []
    for i, arrival_s in enumerate(sorted(float(random.randrange(80)) for _ in range(60))):
        sender = arrival_s, "", random.choice("abc"), random.choice(list(TIERS))
        load.append(Request(str(i), *sender, random.randint(2, 18), category=random.choice(list(base))))
        load[-1].input_tokens = random.randint(2, 15)
    monkeypatch.setattr(scheduler, "_now", lambda: clock.now)
    monkeypatch.setattr(scheduler, "max_num_active_reqs", 4)
    records, runner = use(scheduler, policy=policy, base_tokens=base), Runner(scheduler, depth=1)
    coming = deque(load)
    while coming or scheduler.requests:
        while coming and coming[0].arrival_s <= clock.now:
            sent, like = {"tenant": coming[0].tenant, "category": coming[0].category}, coming.popleft()
            scheduler.add_request(request(like.request_id, like.max_tokens, like.tier, like.input_tokens, **sent))
        runner.step()
        clock.now += 1.0

    costs = dict.fromkeys(COSTS, 0.0) | {"base_s": 1.0, "decode_s": {1: 0.0}}
    profile = make_profile(costs, max_num_seqs=4, max_model_len=512, kv_blocks=BLOCKS - 1)
    engine = SimulatedEngine(profile, lambda one: (one.input_tokens, one.max_tokens))
    add, begun = engine.add, []
    monkeypatch.setattr(engine, "add", lambda one: (begun.append(one.request_id), add(one)))
    simulated = served(load, engine, POLICIES[policy](), estimator=PaperEstimator(base))
    assert runner.begun == list(dict.fromkeys(begun)) and len(runner.begun) == len(load)
    columns = ("request_id", "arrival_s", "output_tokens", "estimated_tokens", "bias_before")
    rows = [sorted([getattr(one, name) for name in columns] for one in run) for run in (records, simulated.values())]
    assert rows[0] == rows[1]


def add_blocked(scheduler, tier="standard"):
    """Add a request whose grammar still compiles."""
    blocked = request("json", 30, tier)
    blocked.status = type(blocked.status).WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    blocked.structured_output_request = SimpleNamespace(grammar=None)
    scheduler.add_request(blocked)
    return blocked


def test_what_cannot_begin_yet_goes_back_to_the_policy(scheduler, monkeypatch):
    """A batch request whose grammar compiles comes after premium ones that came later, and counts as queued."""
    monkeypatch.setattr(scheduler, "max_num_active_reqs", 2)
    records, runner = use(scheduler, policy="priority"), Runner(scheduler, depth=1)
    blocked = add_blocked(scheduler, "batch")
    runner.step()
    assert scheduler.core.depth["batch"] == len(scheduler.waiting) == 1 and not scheduler.waiting.served
    for i in range(2):
        scheduler.add_request(request(f"first{i}", 10))
    runner.step()
    for i in range(3):
        scheduler.add_request(request(f"premium{i}", 5, "premium"))
    blocked.status, blocked.structured_output_request = type(blocked.status).WAITING, None
    runner.drain()
    assert runner.begun == ["first0", "first1", "premium0", "premium1", "premium2", "json"]
    assert len(records) == 6 and scheduler.core.is_idle


def test_what_went_back_and_is_aborted_is_forgotten(scheduler, finish):
    for policy in ("vtc", "wfq", "drr", "express"):
        records = use(scheduler, policy=policy)
        add_blocked(scheduler)
        runner = Runner(scheduler, depth=1)
        runner.step()
        runner.step()
        finish(["json"])
        assert [record.outcome for record in records] == [Outcome.CANCELLED] and scheduler.core.is_idle
        for name in ("_charged", "_paid", "_dispatched"):
            assert not getattr(scheduler.core.policy, name, ())


def test_nothing_is_preempted_while_paused_or_for_what_would_not_get_the_slot(scheduler, monkeypatch):
    """Four slots are full of long requests under SRPT.  A free slot is that of a request which vLLM preempted."""
    from vllm.v1.core.sched.interface import PauseState

    monkeypatch.setattr(scheduler, "max_num_active_reqs", 4)
    use(scheduler, policy="srpt")
    runner = Runner(scheduler, depth=1)
    for i in range(4):
        scheduler.add_request(request(f"long{i}", 200))
    for _ in range(6):
        runner.step()
    scheduler.add_request(request("short", 5, category="short_qa"))
    for state in (PauseState.PAUSED_NEW, PauseState.PAUSED_ALL):
        scheduler.set_pause_state(state)
        runner.step()
        assert len(scheduler.running) == 4
    scheduler.set_pause_state(PauseState.UNPAUSED)
    scheduler._preempt_request(scheduler.running.pop(), 0.0)
    monkeypatch.setattr(scheduler, "max_num_active_reqs", 3)
    runner.step()
    assert {running.request_id for running in scheduler.running} == {"long0", "long1", "long2"}
    monkeypatch.setattr(scheduler, "max_num_active_reqs", 4)
    runner.step()
    assert "long3" in [running.request_id for running in scheduler.running]
    runner.step()
    assert "short" in [running.request_id for running in scheduler.running]
    runner.drain()


def test_an_output_that_the_context_ends_is_as_one_that_its_limit_ends(scheduler):
    """A prompt of 500 tokens leaves room for 12."""
    records, runner = use(scheduler), Runner(scheduler)
    scheduler.add_request(request("cut", 400, prompt=500))
    runner.drain()
    [record] = records
    assert (record.max_tokens, record.output_tokens, record.estimated_tokens, record.bias_after) == (12, 12, 12, None)
    assert scheduler.core.estimator.state_ == PaperEstimator().state_


def test_a_failure_of_the_engine_is_no_clients_abort(scheduler, finish):
    records, runner = use(scheduler), Runner(scheduler, depth=1)
    scheduler.add_request(request("1", 50))
    runner.step()
    finish(["1"], "FINISHED_ERROR")
    assert [record.outcome for record in records] == [Outcome.FAILED]
    assert abs(records[0].arrival_s - time.time()) < 60


def test_a_state_file_that_cannot_be_used_is_refused(scheduler, tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    use(scheduler, state_file=str(path))
    assert path.exists()  # from the start, so that a wrong path is no surprise at the end
    for other in ({"estimator": "kalman"}, {"base_tokens": {"short_qa": 1, "summary": 2, "technical": 3, "report": 4}}):
        with pytest.raises(ParamsError, match=r"state.json: holds PaperEstimator .* and the settings ask for"):
            use(scheduler, state_file=str(path), **other)
    path.write_text("{")
    with pytest.raises(ParamsError, match=r"state.json: invalid JSON"):
        use(scheduler, state_file=str(path))
    path.unlink()
    with pytest.raises(ParamsError, match=r"state.json: cannot be written"):
        use(scheduler, state_file=str(tmp_path / "none" / "state.json"))
    monkeypatch.setattr("driftsched_lib.vllm_plugin.scheduler.SAVE_EVERY_S", 0.0)
    use(scheduler, state_file=str(path))
    before = path.read_bytes()
    scheduler.add_request(request("1", 70, category="short_qa"))
    Runner(scheduler, depth=1).drain()
    assert path.read_bytes() != before
    path.unlink()

    # Engines side by side keep states of their own.
    monkeypatch.setattr(scheduler.vllm_config.parallel_config, "data_parallel_size", 2)
    monkeypatch.setattr(scheduler.vllm_config.parallel_config, "data_parallel_index", 1)
    use(scheduler, state_file=str(path))
    assert [path.name for path in tmp_path.iterdir()] == ["state-rank1.json"]


@pytest.fixture
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


def test_a_long_system_prompt_does_not_hide_what_is_asked(scheduler, tokenizer, monkeypatch):
    monkeypatch.setattr(scheduler, "_now", lambda: 0.0)
    use(scheduler, classifier="text")
    system = "You are a helpful assistant for ACME. Always answer politely, and cite the sources that you use. " * 15
    for text in ("What is DNS?", "Summarize TLS in one paragraph."):
        sent = request("1", 5)
        sent.prompt_token_ids = tokenizer.encode(system + text)
        read = scheduler._read(sent).prompt
        assert read.endswith(text) and len(read) < len(system) / 2


MINE = """
from driftsched_lib.policies import KeyedQueue
from driftsched_lib.requests import Estimate

class GoldLast(KeyedQueue):
    def key(self, request):
        return ("free", "bronze", "silver", "gold").index(request.tier)

class Constant:
    def __init__(self, tokens: int):
        self.tokens = tokens

    def estimate(self, request):
        return Estimate(self.tokens, request.input_tokens + self.tokens, 1.0, self.tokens)

    def observe(self, request, output_tokens): ...
"""
SCRIPT = "<script>alert(1)</script>"
TEXTS = [SCRIPT, "../../etc/passwd", "\0", "\ud800", "{0.__class__}", "%s%n", "a" * 100_000, "", b"\xff"]
SENT = [*TEXTS, None, 0, -1, 1e308, True, float("nan"), [], ["premium"], {"premium": 1}]


@pytest.mark.parametrize("classifier", ["keywords", "text"])
def test_whatever_is_sent_is_data_and_what_is_learnt_of_it_can_be_loaded(classifier, scheduler, tokenizer, tmp_path):
    """Words that would be code elsewhere and tokens that are no text, names of all types: served, learnt, kept."""
    random, state = Random(3), tmp_path / "state.json"
    texts = SCRIPT * 5, "{0.__class__.__mro__}", "a\0b\u202e\u2028", "%s%n$(id)"
    prompts = [tokenizer.encode(text) for text in texts]
    prompts += [random.choices(range(len(tokenizer)), k=random.randint(1, 300)) for _ in range(40)]
    settings = {"classifier": classifier, "estimator": "pooled", "policy": "express", "state_file": str(state)}
    records, runner = use(scheduler, **settings), Runner(scheduler)
    for i, prompt in enumerate(prompts + [prompts[0]] * 3 * len(SENT)):
        sent = {name: random.choice(SENT) for name in ("tenant", "tier", "category")}
        one = request(str(i), random.randint(1, 20), prompt=len(prompt), **sent)
        one.prompt_token_ids[:] = prompt
        scheduler.add_request(one)
    runner.drain()
    assert len(records) == i + 1 and {record.outcome for record in records} == {Outcome.COMPLETED}
    assert {record.tier for record in records} == {"standard"} and max(len(record.tenant) for record in records) == 128
    assert {path.name for path in tmp_path.iterdir()} == {"state.json"}
    scheduler.shutdown()
    learnt = scheduler.core.estimator.state_
    use(scheduler, **settings)
    assert scheduler.core.estimator.state_ == learnt


OWN_TIERS = {"gold": {"weight": 8}, "silver": {"safety": 1.1}, "bronze": {}, "free": {"ttft_slo_s": 90.0}}


@pytest.mark.parametrize(
    ("policy", "order"),
    [("priority", "gold acme bronze free premium"), ("my_policy:GoldLast", "free premium bronze acme gold")]
    + [(policy, None) for policy in ("weighted", "express", "edf")],
)
def test_tiers_and_a_policy_and_an_estimator_of_my_own(policy, order, scheduler, tmp_path, monkeypatch):
    """One settings file names them; the classes stand in a file beside it, which is on PYTHONPATH."""
    (tmp_path / "my_policy.py").write_text(MINE)
    settings = {"policy": policy, "estimator": {"my_policy:Constant": {"tokens": 7}}, "tiers": OWN_TIERS}
    settings |= {"tenants": {"acme": "silver"}, "default_tier": "free"}
    (tmp_path / "plugin.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(scheduler, "max_num_active_reqs", 1)
    records, runner = start(scheduler, PluginSettings.load(tmp_path / "plugin.yaml")), Runner(scheduler, depth=1)
    for tier in ("free", "bronze", "premium", "gold"):
        scheduler.add_request(request(tier, 5, tier))
    scheduler.add_request(request("acme", 5, "gold", tenant="acme"))
    runner.drain()
    tiers = {record.request_id: record.tier for record in records}
    assert tiers == {"free": "free", "bronze": "bronze", "premium": "free", "gold": "gold", "acme": "silver"}
    assert {record.estimated_tokens for record in records} == {7}
    assert order in (None, " ".join(runner.begun))
