"""What tests of vLLM's scheduler build: one without a model, its requests, a runner, and a load that is aborted."""

from collections import defaultdict, deque
from importlib import import_module

from driftsched_lib.validation import PROJECT

MODEL = str(PROJECT / "data" / "models" / "driftsched-tiny")


def make_vllm_scheduler(kind, kv_blocks, async_scheduling=True, block_size=16, **limits):
    """Make a scheduler of this class, or of the class that this path names."""
    import_module("driftsched_lib.engines.vllm")  # sets what vLLM reads at import
    import torch
    from vllm import EngineArgs
    from vllm.utils.import_utils import resolve_obj_by_qualname
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = EngineArgs(MODEL, enforce_eager=True, enable_prefix_caching=False, **limits).create_engine_config()
    config.scheduler_config.async_scheduling = async_scheduling  # which vLLM switches off on a CPU
    config.cache_config.num_gpu_blocks = kv_blocks
    layer = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    cache = KVCacheConfig(kv_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], layer)])
    kind = resolve_obj_by_qualname(kind)
    return kind(config, cache, StructuredOutputManager(config), block_size=block_size, log_stats=True)


def make_vllm_request(name, tokens, tier="standard", prompt=20, **sent):
    from vllm import SamplingParams
    from vllm.v1.request import Request

    params = SamplingParams(max_tokens=tokens, ignore_eos=True, extra_args={"tier": tier, "category": "report"} | sent)
    return Request(name, [5] * prompt, params, None)


class Runner:
    """Answers `depth` - 1 steps late; a token is the place in its request that it was sampled at."""

    def __init__(self, scheduler, depth=2, on_answer=lambda output: None):
        self.scheduler, self.depth, self.on_answer, self.late = scheduler, depth, on_answer, deque()
        self.made, self.begun = defaultdict(list), []

    def step(self):
        from vllm.v1.outputs import ModelRunnerOutput

        scheduler, ended = self.scheduler, set()
        output = scheduler.schedule()
        self.begun += [new.req_id for new in output.scheduled_new_reqs]
        assert len(scheduler.running) <= scheduler.max_num_running_reqs
        running = {name: scheduler.requests[name] for name in output.num_scheduled_tokens}
        tokens = {name: [] if one.is_prefill_chunk else [one.num_computed_tokens] for name, one in running.items()}
        if tokens or not self.late:
            self.late.append((output, tokens))
        if len(self.late) >= self.depth or not tokens:
            output, tokens = self.late.popleft()
            answer = ModelRunnerOutput(list(tokens), {name: i for i, name in enumerate(tokens)}, list(tokens.values()))
            parts = [
                part for client in scheduler.update_from_output(output, answer).values() for part in client.outputs
            ]
            for part in parts:
                self.made[part.request_id] += part.new_token_ids
            ended = {part.request_id for part in parts if part.finish_reason is not None}
            self.on_answer(output)
        return ended

    def drain(self):
        while self.scheduler.requests or self.late:
            self.step()


def start(scheduler, settings):
    """Start anew with these settings; return the list that gets a record for each request that ends."""
    records = []
    assert not scheduler.requests
    scheduler.use(settings)
    count = scheduler.core.on_record

    def on_record(record):
        count(record)
        record.request_id = record.request_id.partition("-")[0]  # vLLM adds to an id, so that each is unique
        records.append(record)

    scheduler.core.on_record = on_record
    return records


def storm(requests, random, burst, victims, add, abort, step, is_busy):
    """Add up to `burst` requests per step and abort `victims()` of them; return the ids that ended and were aborted."""
    todo, alive, ended, aborted = deque(requests.items()), set(), set(), set()
    while todo or is_busy():
        for _ in range(min(len(todo), random.randint(0, burst))):
            name, request = todo.popleft()
            add(request)
            alive.add(name)
        hit = set(random.sample(sorted(alive), min(len(alive), victims())))
        abort(hit)
        done = step()
        assert not done & ended
        aborted, ended = aborted | hit, ended | done
        alive -= aborted | ended
    return ended, aborted
