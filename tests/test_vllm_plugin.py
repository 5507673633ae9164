"""The policies inside real vLLM: the order they serve in, aborts, preemptions, settings, and what is kept."""

import gc
import logging
from importlib import import_module
from random import Random

import pytest
from inside_vllm import MODEL, start, storm
from simulation import COSTS, make_profile, simulated

from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators import PaperEstimator
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import BASE_TOKENS, Outcome, Request
from driftsched_lib.validation import PROJECT
from driftsched_lib.vllm_plugin.settings import PluginSettings

TENANTS = {"a": "premium", "b": "standard", "c": "batch", "d": "batch"}
PROMPTS = "What is DNS?", "Summarize TLS in one paragraph.", "Explain how Go works.", "Write a detailed report on Go."


@pytest.fixture(scope="module")
def engine():
    """vLLM in this process, scheduled by the plug-in: few KV blocks, prompts in chunks, prefixes cached."""
    import_module("driftsched_lib.engines.vllm")  # sets what vLLM reads at import
    from vllm import EngineArgs, LLMEngine

    gc.collect()  # an engine that is collected takes down what all engines of a process share
    limits = {"max_model_len": 512, "max_num_seqs": 16, "max_num_batched_tokens": 64}
    cache = {"num_gpu_blocks_override": 6, "block_size": 128, "enable_prefix_caching": True}
    plugin = "driftsched_lib.vllm_plugin.DriftSchedScheduler"
    args = EngineArgs(MODEL, scheduler_cls=plugin, enforce_eager=True, dtype="float32", **limits, **cache)
    llm = LLMEngine.from_vllm_config(args.create_engine_config())
    llm.scheduler = llm.engine_core.engine_core.scheduler
    yield llm
    llm.engine_core.shutdown()
    del llm
    gc.collect()


def use(engine, **settings):
    assert not engine.has_unfinished_requests()
    return start(engine.scheduler, PluginSettings.parse(settings, "test"))


def add(engine, request):
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sent = {"tenant": request.tenant, "tier": request.tier}
    length = dict.fromkeys(("max_tokens", "min_tokens"), request.fixed_output_tokens)
    params = SamplingParams(**length, extra_args=sent, output_kind=RequestOutputKind.FINAL_ONLY)
    engine.add_request(request.request_id, request.prompt, params)


def load(n, seed=1, longest=12):
    random, requests = Random(seed), []
    for i in range(n):
        prompt, tenant = random.choice(PROMPTS), random.choice(list(TENANTS))
        length = random.randint(1, longest)
        requests.append(Request(str(i), 0.0, prompt, tenant, TENANTS[tenant], length, fixed_output_tokens=length))
    return requests


def serve_all(engine, requests=()):
    """Add requests and step until none is left; return output lengths by id, in the order in which they finished."""
    lengths = {}
    for request in requests:
        add(engine, request)
    while engine.has_unfinished_requests():
        lengths |= {done.request_id: len(done.outputs[0].token_ids) for done in engine.step() if done.finished}
    return lengths


def is_empty(engine):
    queue = engine.scheduler.waiting
    return engine.scheduler.core.is_idle and not queue and not len(queue) and not list(queue) and not queue.served


def assert_whole(engine, lengths, requests, records):
    assert lengths == {request.request_id: request.fixed_output_tokens for request in requests}
    assert lengths == {record.request_id: record.output_tokens for record in records}
    assert is_empty(engine) and [record.outcome for record in records] == [Outcome.COMPLETED] * len(requests)


@pytest.mark.parametrize("policy", POLICIES)
def test_vllm_serves_in_the_order_of_the_simulator(policy, engine, monkeypatch):
    """One slot, all requests there at once, time standing still: every choice shows in the order."""
    base, requests = dict.fromkeys(BASE_TOKENS, 12), load(40)
    monkeypatch.setattr(type(engine.scheduler), "_now", lambda self: 0.0)
    monkeypatch.setattr(engine.scheduler, "max_num_active_reqs", 1)
    records = use(engine, policy=policy, estimator="paper", classifier="keywords", base_tokens=base)
    serve_all(engine, requests)
    assert is_empty(engine)
    tokens = {record.request_id: record.input_tokens for record in records}
    for request in requests:
        request.input_tokens = tokens[request.request_id]
    profile, no_time = make_profile(max_num_seqs=1), dict.fromkeys(COSTS, 0.0) | {"decode_s": {1: 0.0}}
    profile = profile.model_copy(update={"step": profile.step.model_copy(update=no_time)})
    _, there = simulated(requests, profile, policy=POLICIES[policy](), estimator=PaperEstimator(base))
    columns = ("request_id", "category", "tenant", "tier", "output_tokens", "estimated_tokens", "bias_before")
    rows = [[[getattr(record, column) for column in columns] for record in run] for run in (records, there.values())]
    assert rows[0] == rows[1] and len(records) == 40


def test_abort_storms_lose_nothing(engine):
    """1,000 requests, a third of them aborted at random moments and some in storms: each ends exactly once."""
    random = Random(2)
    records = use(engine, policy="express", tenants=TENANTS)
    requests = {request.request_id: request for request in load(1000, longest=6)}
    finished, aborted = storm(
        *(requests, random, 20, lambda: random.randint(20, 60) if random.random() < 0.05 else random.randint(0, 3)),
        *(lambda request: add(engine, request), lambda ids: engine.abort_request(list(ids))),
        *(lambda: {done.request_id for done in engine.step() if done.finished}, engine.has_unfinished_requests),
    )
    assert is_empty(engine)
    outcomes = {record.request_id: record.outcome for record in records}
    assert len(records) == len(outcomes) == 1000 and 200 < len(aborted) < 800
    assert finished == requests.keys() - aborted and all(outcomes[i] is Outcome.COMPLETED for i in finished)
    assert {outcomes[i] for i in aborted} <= {Outcome.COMPLETED, Outcome.CANCELLED}
    # An aborted request may have been finished by the engine before it heard of it: asynchronous scheduling runs ahead.
    assert sum(outcomes[i] is Outcome.COMPLETED for i in aborted) < 100


def test_preempted_requests_come_back_first_and_whole(engine, monkeypatch):
    """What is served when KV blocks run out, and every output as long as it should be."""
    records = use(engine, policy="sjf", classifier="keywords")
    queue, preempted, resumed = engine.scheduler.waiting, [], []
    prepend, pop = queue.prepend_request, queue.pop_request

    def pop_request():
        front = [request.request_id for request in queue._front]
        request = pop()
        if front:
            assert request.request_id == front[0]
            resumed.append(request.request_id)
        return request

    monkeypatch.setattr(queue, "prepend_request", lambda one: (preempted.append(one.request_id), prepend(one)))
    monkeypatch.setattr(queue, "pop_request", pop_request)
    requests = load(24, longest=150)
    for request in requests:
        request.prompt = "You are a careful assistant who answers in full. " * 4 + request.prompt
    lengths = serve_all(engine, requests)
    assert preempted and sorted(resumed) == sorted(preempted)
    assert_whole(engine, lengths, requests, records)


def test_a_policy_takes_slots_back_and_every_output_is_whole(engine, monkeypatch):
    """Long requests hold both slots; short ones that come later end first, by vLLM's own preemption."""
    monkeypatch.setattr(engine.scheduler, "max_num_active_reqs", 2)
    records = use(engine, policy="srpt", classifier="keywords")
    long, short = load(4, seed=3, longest=100), load(10, seed=4, longest=5)
    for i, request in enumerate(long + short):
        request.request_id = str(i)
    for request in long:
        request.fixed_output_tokens = 90
        add(engine, request)
    for _ in range(20):
        assert not any(output.finished for output in engine.step())
    lengths = serve_all(engine, short)
    assert list(lengths)[:10] == sorted(lengths, key=lambda i: lengths[i] == 90)[:10]
    assert_whole(engine, lengths, long + short, records)
    assert sum(record.preemptions for record in records) >= 2


def test_settings_come_from_the_environment_or_vllms_config_and_another_vllm_is_warned_of(
    engine, tmp_path, monkeypatch, caplog
):
    from driftsched_lib.vllm_plugin.scheduler import CONFIG, TESTED, load_settings, logger, warn_if_untested

    config = engine.vllm_config
    assert load_settings(config) == PluginSettings()
    (tmp_path / "a.yaml").write_text("policy: {aging: {rate: 0.5}}")
    monkeypatch.setattr(config, "additional_config", {"driftsched_config": str(tmp_path / "a.yaml")})
    assert str(load_settings(config).policy) == "aging-rate=0.5"
    monkeypatch.setenv(CONFIG, str(PROJECT / "params" / "plugin.yaml"))
    assert load_settings(config) == PluginSettings()

    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING, logger=logger.name):
        warn_if_untested(f"{TESTED[0]}+cpu")
        warn_if_untested("9.9.9")
    assert caplog.messages == [f"DriftSched is tested with vLLM {TESTED[0]}, this is 9.9.9"]


@pytest.mark.parametrize(
    ("sent", "priority", "expected"),
    [
        ({}, 0, ("anonymous", "standard", "")),
        ({"tenant": "x", "tier": "batch"}, 0, ("x", "batch", "")),
        ({"tenant": "acme", "tier": "batch"}, 0, ("acme", "premium", "")),
        ({"tenant": 7, "tier": "gold"}, 1, ("7", "batch", "")),
        ({"category": "report"}, 5, ("anonymous", "standard", "report")),
        ({"category": ["report"], "tier": {}}, 0, ("anonymous", "standard", "")),
    ],
)
def test_a_request_says_who_it_is_from(sent, priority, expected):
    settings = PluginSettings(tenants={"acme": "premium"}, priorities={1: "batch"})
    assert settings.identify(sent, priority) == expected
    wary = settings.model_copy(update={"trust_sent_tier": False})
    assert wary.identify(sent, priority)[1] == ("standard" if sent.get("tenant") == "x" else expected[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("polcy: sjf", "polcy: unknown key: 'polcy' is unknown. Did you mean 'policy'"),
        ("policy: sfj", "policy: 'sfj' is unknown. Did you mean 'sjf'"),
        ("policy: none_such:Policy", "policy: 'none_such:Policy' cannot be imported"),
        ("estimator: oracle", "estimator: oracle knows only fixed output lengths"),
        ("tenants: {acme: gold}", "tenants.acme: 'gold' is unknown. Known: premium, standard, batch"),
        ("priorities: {1: prime}", "priorities.1: 'prime' is unknown"),
        ("tiers: {gold: {weight: 2}}", "default_tier: 'standard' is unknown. Known: gold"),
        ("tiers: {gold: {weight: 0}}", "tiers.gold.weight: input should be greater than"),
        ("tiers: {}", "tiers: dictionary should have at least 1 item"),
        ("base_tokens: {report: 5}", "base_tokens: a base for short_qa, summary, technical is missing"),
        ("policy: !!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_settings_that_are_wrong_are_named(text, message, tmp_path):
    (tmp_path / "plugin.yaml").write_text(text)
    with pytest.raises(ParamsError, match=f"plugin.yaml: {message}"):
        PluginSettings.load(tmp_path / "plugin.yaml")
