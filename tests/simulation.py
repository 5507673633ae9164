"""What the simulator's tests build: profiles, requests of known lengths, a served load."""

from hypothesis import strategies as st

from driftsched_lib.classify import KeywordClassifier
from driftsched_lib.engines.profile import EngineLimits, Profile, Provenance, StepCost
from driftsched_lib.engines.simulated import SimulatedEngine
from driftsched_lib.policies import Fifo
from driftsched_lib.requests import Estimate, Request
from driftsched_lib.scheduler import Scheduler
from driftsched_lib.serving import ContinuousBatching, serve
from driftsched_lib.tokens import TokenizerCounter
from driftsched_lib.validation import PROJECT

COSTS = {"base_s": 1e-2, "per_prefill_step_s": 1e-3, "per_prompt_s": 5e-4, "per_prefill_token_s": 1e-4}
COSTS |= {"decode_s": {1: 2e-4}, "per_context_token_s": 3e-6}
LIMITS = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 256, "block_size": 16, "kv_blocks": 64}
PAPER_L4 = PROJECT / "params" / "paper-l4.yaml"
SMALL = {"seeds": [1, 2], "requests": 60, "scheduler.policies": ["fifo", "sjf"], "scheduler.batching": ["continuous"]}
ONE_RUN = {
    "scheduler.policies": "fifo",
    "scheduler.estimators": "paper",
    "scheduler.batching": "continuous",
    "seeds": 1,
}


def make_profile(costs=COSTS, launch_bound=False, **limits):
    return Profile(
        step=StepCost(**costs),
        limits=EngineLimits(**LIMITS | limits),
        tokens_per_prompt_word=1.0,
        words_per_output_token=0.5,
        launch_bound=launch_bound,
        provenance=Provenance(measured=False, model="none", hardware="none", date="2026-01-01"),
    )


def request(request_id, arrival_s=0.0, prompt=1, output=1, tier="standard", **fields):
    """A request with a prompt of so many words and an output of so many tokens."""
    return Request(str(request_id), arrival_s, " ".join(["word"] * prompt), "tenant", tier, output, **fields)


class KnowsLimits:
    """Knows the output's length: `fixed_output_tokens`, or else `max_tokens`."""

    def estimate(self, request):
        output = request.fixed_output_tokens or request.max_tokens
        return Estimate(output, request.input_tokens + output, 1.0, output)

    def observe(self, request, output_tokens): ...


def served(requests, engine, policy=None, batching=None, estimator=None, **options):
    """Serve, and return the records by request id.  Prompts count by the word, outputs by the engine's tokens."""
    records, counter = [], TokenizerCounter(lambda text: len(text.split()))
    policy = Fifo() if policy is None else policy  # an empty queue is false
    scheduler = Scheduler(policy, estimator or KnowsLimits(), counter, KeywordClassifier(), records.append)
    serve(requests, scheduler, engine, batching or ContinuousBatching(), **options)
    return {record.request_id: record for record in records}


def simulated(requests, profile=None, log_steps=False, **options):
    """Serve by a new simulated engine, and return it and the records by request id."""
    engine = SimulatedEngine(profile or make_profile(), log_steps=log_steps)
    return engine, served(requests, engine, **options)


def contents(out):
    """The bytes of all that a results folder holds, but for manifests, which say when it was made."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


# Random loads on engines so small that prompts are cut, blocks run out and sequences are preempted.

BOUNDS = {"max_num_seqs": (1, 4), "max_num_batched_tokens": (4, 12), "max_model_len": (8, 24), "block_size": (1, 5)}
small = st.fixed_dictionaries({k: st.integers(*bounds) for k, bounds in (BOUNDS | {"kv_blocks": (3, 12)}).items()})
lengths = st.tuples(st.integers(1, 12), st.integers(1, 16))
gaps = st.sampled_from([0.0, 0.0, 0.001, 0.02, 0.05, 0.5])
gives_up = st.sampled_from([None, None, None, 0.03, 0.2])
loads = st.lists(st.tuples(lengths, gaps, gives_up), min_size=1, max_size=10)


def requests_of(load):
    now, requests = 0.0, []
    for i, (sizes, gap, patience) in enumerate(load):
        now += gap
        requests.append(request(i, now, *sizes, cancel_s=None if patience is None else now + patience))
    return requests
