"""Whatever a file says, it is run or refused: one message names the place, there is no inner traceback and no hang.

Each example is a valid file with a few changes; `--thorough` tries 10,000 of each kind.
"""

import gc
import json
import signal
import tempfile
import warnings
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial
from itertools import islice
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from simulation import PAPER_L4

from driftsched_lib import Params, run_grid
from driftsched_lib.errors import DriftSchedError
from driftsched_lib.estimators import ESTIMATORS
from driftsched_lib.estimators.state import load_estimator, save_estimator
from driftsched_lib.policies import POLICIES
from driftsched_lib.requests import TIERS
from driftsched_lib.studies.drift_lab import lab_load, replay
from driftsched_lib.validation import PROJECT
from driftsched_lib.vllm_plugin.settings import PluginSettings
from driftsched_lib.workloads.drift import SCENARIOS
from driftsched_lib.workloads.length_mix import LengthMix
from driftsched_lib.workloads.traces import FORMATS, read_trace

MAX_S, DATA = 60, PROJECT / "data"
# Each try is a run: shrinking would take minutes.
unshrunk = settings(max_examples=settings().max_examples // 2, phases=[Phase.generate])
TRACES = {
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50,9,10\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18\n45.5,GPT-4,1087,230\n",
    "mooncake": '{"timestamp": 0, "input_length": 67, "output_length": 5}\n'
    '{"timestamp": 30, "input_length": 7, "output_length": 51, "hash_ids": [46]}\n',
    "vllm_bench": '{"start_times": [1.5, 2.0], "input_lens": [10, 20], "output_lens": [3, 4]}',
    "clients": "{seed: 1, duration_s: 9, clients: [{tenant: a, rate_per_s: 2.0, prompt_tokens: {median: 30}, "
    "output_tokens: {median: 8, log_sd: 0.5}}]}",
    "csv": "arrival,prompt_tokens,output_tokens,tenant,tier,category\n0,5,6,acme,premium,report\n1,7,8,,,\n",
}
SMALL = {"requests": 12, "seeds": [1], "scheduler.policies": ["sjf"], "scheduler.estimators": ["paper"]}
SMALL |= {"engine.args.max_num_seqs": 2, "workload.length_scale": 0.1}
numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([0.0, -0.0, 1e-300, 1e-9, 0.5, 2.5, 1e9, 1e308, 10**30, -(10**400), float("nan"), float("inf")]),
)
WORDS = ["", " ", "report", "premium", "sjf", "oracle", "natural", "spread", "a/../b", "\0", "é\u202e", "😀"]
words = st.sampled_from(WORDS)
components = st.builds(
    lambda name, options: {name: options} if options else name,
    st.sampled_from([*POLICIES, *ESTIMATORS]),
    st.dictionaries(st.sampled_from(["rate", "alpha", "window", "quantum", "clip"]), numbers, max_size=1),
)
anything = st.one_of(
    *(numbers, words, components, st.booleans(), st.none()),
    st.sampled_from([*SCENARIOS, "continuous", "static", "tokenizer", "text", {"mean_share": 0.5, "cv": 2.0}]),
    st.lists(st.one_of(numbers, words, components), max_size=3),
    st.dictionaries(words, st.one_of(numbers, words), max_size=2),
)


def places(value, path=()):
    """Yield the paths to all that a document holds."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield (*path, name)
        yield from places(part, (*path, name))


@st.composite
def changed(draw, document):
    """Return the document with up to three places replaced, taken out or renamed."""
    document = deepcopy(document)
    for _ in range(draw(st.integers(0, 3))):
        *path, last = draw(st.sampled_from(list(places(document)) or [()])) or [None]
        if last is None:
            break
        parent = document
        for name in path:
            parent = parent[name]
        match draw(st.sampled_from(["replace"] * 6 + ["drop", "rename"])):
            case "replace":
                parent[last] = deepcopy(draw(anything))  # the next change may be inside it
            case "drop":
                del parent[last]
            case "rename" if isinstance(parent, dict):
                parent[draw(words)] = parent.pop(last)
    return document


pieces = st.one_of(st.text(max_size=6), numbers.map(repr), words, st.sampled_from(["\n", ",", '"', "[" * 1000]))


@st.composite
def damaged(draw, content, pieces=pieces):
    """Return the text or the bytes with a piece of them replaced."""
    begin = draw(st.integers(0, len(content)))
    end = draw(st.integers(begin, min(len(content), begin + 12)))
    return content[:begin] + draw(pieces) + content[end:]


@pytest.fixture(autouse=True, scope="module")
def quick_collections():
    """Keep what the suite has imported out of the collection of garbage before each run."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@contextmanager
def file_of(content, name, *others):
    """Yield a file with this content; what is done with it ends in time, and an error names it or one of the others."""

    def too_long(*_):
        raise AssertionError(f"runs for more than {MAX_S} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(MAX_S)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # NumPy's, of a number that is none
            path = Path(folder) / name
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
            yield path
    except DriftSchedError as error:
        assert any(str(word) in str(error) for word in (name, *others)), error
        assert 0 < len(str(error)) < 20_000
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def runs(path, overrides=None, max_requests=12):
    """Read parameters and serve the first run; one that would take long is cut short after it has been accepted."""
    params = Params.load(path, overrides)
    params = params.model_copy(update={"requests": min(params.requests, max_requests), "seeds": params.seeds[:1]})
    if params.engine.kind == "simulated":
        with tempfile.TemporaryDirectory() as out:
            run_grid(params, out, params.runs()[:1], jobs=1)


def small(changes):
    runs(PAPER_L4, SMALL | changes)


def with_trace(path, format, **options):
    return {"workload.trace": {"file": str(path), "format": format, **options}, "requests": 2}


def takes_length_mix(path):
    LengthMix.load(path)
    phase = PARAMS["workload"]["phases"][0] | {"share": 1.0, "lengths": str(path)}
    small({"workload.phases": [phase]})


def takes_plugin_settings(path):
    settings = PluginSettings.load(path)
    settings.policy.build()
    settings.estimator.build(base_tokens=settings.base_tokens)
    assert settings.identify({"tenant": "a", "tier": "premium"}, 0)[1] in TIERS


def takes_recorded_lengths(path):
    lengths = {"workload.drift": "stationary", "workload.recorded_lengths": str(path)}
    runs(NATURAL, {"engine": SIMULATED} | lengths, max_requests=1000)


@cache
def learnt(name):
    """Return what the state file of an estimator that has learnt something holds."""
    with tempfile.TemporaryDirectory() as folder:
        estimator, path = ESTIMATORS[name](), Path(folder) / "state.json"
        replay(estimator, lab_load("abrupt", seed=1, requests=40))
        save_estimator(estimator, path)
        return json.loads(path.read_text())


def takes_state(path):
    estimator, known = load_estimator(path), json.loads(path.read_text())["parameters"]["base_tokens"]
    # A category without a base is refused, and named, at its request.
    replay(estimator, [request for request in lab_load("abrupt", 2, 12) if request.category in known])
    save_estimator(estimator, path)


as_yaml, as_bytes = partial(yaml.safe_dump, sort_keys=False), st.binary(max_size=12)
PARAMS = Params.load(PAPER_L4, SMALL).model_dump()
SAMPLE = with_trace(DATA / "traces" / "sample-clients.yaml", "clients")
PARAMS_OF_A_TRACE = Params.load(PAPER_L4, SMALL | SAMPLE | {"requests": 12}).model_dump()
KEYS = [*PARAMS, *(key for section in PARAMS.values() if isinstance(section, dict) for key in section)]
PARQUET = pd.DataFrame({"arrival": [0.0, 1.0], "prompt_tokens": [5, 7], "output_tokens": [6, 8], "tenant": ["a", "b"]})
NATURAL = PROJECT / "params" / "smoke-natural.yaml"
LENGTHS = DATA / "natural_lengths" / "smoke" / "stationary.parquet"
PROFILE = json.loads((DATA / "profiles" / "l4-qwen1.5-1.8b.json").read_text())
MIX = json.loads((DATA / "traces" / "azure-conv-2023.json").read_text())
SIMULATED = {"kind": "simulated", "profile": "data/profiles/driftsched-tiny-cpu.json"}
STATES = st.sampled_from([*ESTIMATORS]).flatmap(lambda name: changed(learnt(name)))
FILES = {
    "parameters": (st.one_of(changed(PARAMS), changed(PARAMS_OF_A_TRACE)).map(as_yaml), KEYS, runs),
    "text of parameters": (damaged(as_yaml(PARAMS)), [*KEYS, "cannot be read"], lambda path: runs(path, SMALL)),
    "length mix": (changed(MIX).map(json.dumps), [], takes_length_mix),
    "plug-in settings": (changed(PluginSettings().model_dump()).map(as_yaml), [], takes_plugin_settings),
    "profile": (changed(PROFILE).map(json.dumps), ["no progress"], lambda path: small({"engine.profile": str(path)})),
    "trace in bytes": (damaged(PARQUET.to_parquet(), as_bytes), [], lambda path: small(with_trace(path, "parquet"))),
    "estimator state": (STATES.map(json.dumps), [], takes_state),
    "recorded lengths": (damaged(LENGTHS.read_bytes(), as_bytes), [], takes_recorded_lengths),
}
"""By kind, examples of its content, words of which an error may hold one instead of the file's name, and its reader."""


@pytest.mark.parametrize("kind", FILES)
@unshrunk
@given(data=st.data())
def test_files(kind, data):
    contents, others, takes = FILES[kind]
    with file_of(data.draw(contents), "fuzzed", *others) as path:
        takes(path)


@unshrunk
@given(data=st.data(), format=st.sampled_from(list(TRACES)), on_bad_row=st.sampled_from(["skip", "refuse"]))
def test_traces(data, format, on_bad_row):
    assert set(FORMATS) - set(TRACES) == {"parquet"}  # which is among the files in bytes
    with file_of(data.draw(damaged(TRACES[format])), "trace") as path:
        for rows in islice(read_trace(path, format, on_bad_row=on_bad_row), 10):
            assert (rows.arrival_s >= 0).all() and (rows[["prompt_tokens", "output_tokens"]] >= 1).all().all()
        small(with_trace(path, format, on_bad_row=on_bad_row))
