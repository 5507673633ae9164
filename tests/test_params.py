"""Parameters: what is shipped is valid, and what is wrong is named, in one message, before anything is loaded."""

import subprocess
import sys
from typing import Annotated

import pytest
import yaml
from pydantic import PlainSerializer

from driftsched_lib.__main__ import main
from driftsched_lib.engines.profile import Profile
from driftsched_lib.errors import ParamsError
from driftsched_lib.experiments.params import MOVED, SECTIONS, Params
from driftsched_lib.validation import PROJECT, Validated, overlaid, read_yaml

PARAMS = PROJECT / "params"
SHIPPED = sorted(set(PARAMS.glob("*.yaml")) - {PARAMS / "plugin.yaml"})
SIMULATED, NATURAL, NAN = {"kind": "simulated", "profile": "a"}, {"workload.output_length": "natural"}, float("nan")
PREEMPTS = "bad.yaml: scheduler.policies: srpt preempts: a single simulated engine can"
AT_LEAST = "input should be greater than or equal to"


def phase(**fields):
    return {"workload.phases": [{"name": "a", "mix": {"report": 1.0}, "gap_s": [0.1, 0.2]} | fields]}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_is_valid_and_states_only_what_differs(path):
    params, defaults = Params.load(path).model_dump(), Params().model_dump()
    for name, value in yaml.safe_load(path.read_text()).items():
        if name not in SECTIONS:
            assert value != defaults[name]
            continue
        for key in value:
            assert params[name][key] != defaults[name][key], f"{name}.{key}"
    assert len(path.read_text().splitlines()) <= 35


def test_the_defaults_are_the_papers():
    params = Params.load(PARAMS / "paper.yaml")
    engine, scheduler, workload, measure = params.engine, params.scheduler, params.workload, params.measure
    assert workload.max_tokens == {"short_qa": 64, "summary": 256, "technical": 384, "report": 512}
    assert params.job_class_bounds == [128, 512]
    assert (scheduler.batch_size, scheduler.batch_wait_s, scheduler.batching) == (32, 0.01, ["static"])
    assert (params.requests, len(params.seeds), measure.cooling_s, engine.temperature) == (3000, 3, 60.0, 0.7)
    assert [str(policy) for policy in scheduler.policies] == ["fifo", "priority", "weighted", "sjf", "aging"]
    assert engine.model == "Qwen/Qwen1.5-1.8B-Chat"
    assert (engine.args["dtype"], engine.args["gpu_memory_utilization"]) == ("float16", 0.70)
    assert (list(workload.tenants.values()), workload.label_prefix) == (["premium", "standard", "batch"], True)
    assert (measure.queue_depth_interval_s, measure.telemetry_interval_s) == (1.0, 0.2)
    assert [phase.gap_s for phase in workload.phases] == [[0.05, 0.15], [0.005, 0.03]]
    assert [phase.share for phase in workload.phases] == [1 / 3, 2 / 3]
    mixes = [[phase.mix[category] for category in workload.base_tokens] for phase in workload.phases]
    assert mixes == [[0.40, 0.25, 0.25, 0.10], [0.10, 0.20, 0.40, 0.30]]
    assert [(tier.weight, tier.safety) for tier in params.tiers.values()] == [(5, 1.2), (3, 1.0), (2, 0.8)]


def test_a_flat_file_is_refused_with_where_its_keys_went_and_every_fault_has_its_line():
    with pytest.raises(ParamsError) as error:
        Params.parse({"engine": "vllm", "policies": ["fifo"], "length_scale": 0.5, "cooling_s": 1.0}, "old.yaml")
    [line] = str(error.value).splitlines()
    moves = ("engine -> engine.kind", "policies -> scheduler.policies", "length_scale -> workload.length_scale")
    assert line.startswith("old.yaml: ") and all(move in line for move in (*moves, "cooling_s -> measure.cooling_s"))
    assert MOVED["engine_args"] == "engine.args"
    with pytest.raises(ParamsError) as error:  # every fault has its line
        Params.parse({"requests": 0, "seeds": "x"}, "bad.yaml")
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == ["seeds[0]", "requests"]


# By the key that is given, its value, and the message; here [ and ? stand for themselves.
BAD_VALUES = [
    ("scheduler.polices", ["fifo"], "scheduler.polices: unknown key.*Did you mean 'policies'?"),
    ("scheduler.calibration", "yes", "scheduler.calibration[0]: input should be a valid boolean, not 'yes'"),
    ("scheduler.batch_size", 0, "scheduler.batch_size: input should be greater than or equal to 1, not 0"),
    ("engine.kind", "tgi", "engine.kind: input should be 'vllm', 'simulated' or 'server', not 'tgi'"),
    ("engine.kind", "simulated", "bad.yaml: engine: the simulated engine needs a profile"),
    ("engine.replicas", 2, "bad.yaml: engine: a server has no profile, and replicas are for"),
    ("", {"engine": SIMULATED | {"kind": "server"}}, "bad.yaml: engine: a server has no profile, and replicas are for"),
    ("scheduler.policies", "srpt", f"{PREEMPTS}, and vLLM with"),
    ("", {"engine": SIMULATED | {"replicas": 2}, "scheduler.policies": ["fifo", "srpt"]}, PREEMPTS),
    ("", {"engine": SIMULATED} | NATURAL, "workload.output_length: no model ends an output"),
    ("", {"scheduler.estimators": "oracle"} | NATURAL, "the oracle knows fixed lengths alone"),
    ("", phase(lengths="a.json") | {"workload.output_length": "spread"}, "workload: a phase's lengths fix the outputs"),
    ("workload.spread", {"mean_share": 0.0, "cv": 0.5}, f"workload.spread.mean_share: {AT_LEAST} 0.000000001, not 0.0"),
    ("scheduler.batching", "dynamic", "batching[0]: input should be 'static' or 'continuous', not 'dynamic'"),
    ("scheduler.policies", ["fifo", "sjv"], "policies[1]: 'sjv' is unknown. Did you mean 'sjf'? Known: fifo, "),
    ("scheduler.policies", [{"aging": {"rat": 1}}], "policies[0]: rat: unknown key.*Did you mean 'rate'?"),
    ("scheduler.policies", [{"aging": {"rate": -1.0}}], "policies[0]: rate is -1.0, it must be at least 0"),
    ("scheduler.policies", [{"aging": {"rate": NAN}}], "rate: input should be a finite number, not nan"),
    ("scheduler.policies", [{"fifo": 3}], "policies[0]: the arguments of fifo must be a mapping of names to values$"),
    ("scheduler.policies", [], "policies: list should have at least 1 item"),
    ("scheduler.tiers", {"a": {"weight": "x"}}, "scheduler.tiers.a.weight: input should be .*, not 'x'$"),
    ("scheduler.vary_estimates_for", ["sjv"], "scheduler: vary_estimates_for: 'sjv' is unknown. Did you mean 'sjf'?"),
    ("seeds", [1, 2, 1], "seeds: the same value is given twice"),
    ("scheduler.estimators", {"paper": {"alpha": 0}}, "estimators[0]: alpha is 0.0, it must be above 0"),
    ("scheduler.estimators", {"paper": {"calibrate": True}}, "estimators[0]: calibrate: unknown key"),
    ("workload.base_tokens", {"report": 5}, "workload.base_tokens: a base for short_qa, summary, technical is missing"),
    ("measure.job_class_tokens", [512, 128], "measure.job_class_tokens: must be two rising .*not [512, 128]$"),
    ("workload.phases", [{"share": 1.0}], "workload.phases[0].name: is missing"),
    ("", phase(gaps=1), "phases[0].gaps: unknown key.*'gap_s'? Known: name, "),
    ("", phase(mix={"report": 0.9}), "phases[0].mix: the shares must sum to 1, they sum to"),
    ("", phase(gap_s=[-0.1, 0.2]), "phases[0].gap_s[0]: input should be greater than"),
    ("", phase(gap_s=[0.3, 0.2]), "phases[0].gap_s: must be two rising numbers"),
    ("", phase(share=0.5), "workload.phases: the shares must sum to 1"),
    ("engine.temperature", NAN, "engine.temperature: input should be"),
    ("workload.tenants", {}, "workload.tenants: dictionary should have at least 1 item"),
    ("workload.tenants", {"a": "gold"}, "workload: the tier of a, 'gold' is unknown. Known: premium, standard, batch"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD_VALUES)
def test_a_bad_value_is_named_with_its_file_and_field(key, value, message):
    message = message.translate({ord(c): f"\\{c}" for c in "[]?"})
    with pytest.raises(ParamsError, match=message) as error:
        Params.parse(overlaid({}, {key: value} if key else value, "bad.yaml"), "bad.yaml")
    assert str(error.value).startswith("bad.yaml: ")


NO_FILES = {None: "cannot be read", "a: [": "is not YAML", "a: 2024-99-99": "is not YAML"}
NO_FILES |= {"a: 1\nb: 2\na: 1": "is not YAML: in the mapping at line 1: a is given twice"}
NO_FILES |= {"a:\n  - {x: 1, y: {z: 1, 'z': 2}}": "is not YAML: in the mapping at line 2: z is given twice"}


@pytest.mark.parametrize(("text", "message"), (NO_FILES | dict.fromkeys(("- 1", "\xff"), "must be a mapping")).items())
def test_a_file_that_is_none_is_named(tmp_path, text, message):
    path = tmp_path / "p.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ParamsError, match=f"p.yaml: {message}"):
        Params.load(path)


def test_a_merge_in_yaml_gives_no_key_twice_and_json_may_not_either(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("a: &a {x: 1}\np: {q: &b {<<: *a, x: 2}}\nc: {<<: *b, y: 3}")
    assert read_yaml(path)["c"] == {"x": 2, "y": 3}
    text = (PROJECT / "data" / "profiles" / "driftsched-tiny-cpu.json").read_text()
    path.write_text(text.replace('"base_s":', '"base_s": 1.0, "base_s":'))
    with pytest.raises(ParamsError, match="p.yaml: base_s is given twice"):
        Profile.load(path)


def test_overrides_reach_into_mappings_and_no_further_and_changes_are_validated(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("requests: 30\n")
    params = Params.load(path, {"workload.label_prefix": False, "scheduler.policies": "sjf"})
    assert not params.workload.label_prefix and [str(policy) for policy in params.scheduler.policies] == ["sjf"]
    with pytest.raises(ParamsError, match="requests.x reaches into requests, which is not a mapping"):
        Params.load(path, {"requests.x": 1})
    params = Params().changed(scheduler__policies="sjf", requests=5)
    assert (str(params.scheduler.policies[0]), params.requests) == ("sjf", 5)
    with pytest.raises(ParamsError, match="changed parameters: requests: input should be greater than"):
        params.changed(requests=0)


def test_what_is_written_is_read_back():
    values = {"policies": [{"aging": {"rate": 0.5}}, "fifo"], "estimators": [{"paper": {"clip": [0.5, 2.0]}}]}
    params = Params.parse({"scheduler": values}, "test")
    written = params.model_dump()["scheduler"]
    assert {name: written[name] for name in values} == values
    assert yaml.safe_load(yaml.safe_dump(written)) == written  # or a grid with such options could not be taken up again
    assert Params.parse({"scheduler": written}, "again") == params


def test_a_notebooks_variables_lie_over_its_file_and_a_whole_file_replaces_it(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("requests: 30\nseeds: [1]\nscheduler: {policies: [fifo]}")
    params = Params.of_notebook({"params_file": str(path), "out": "runs", "seeds": [7], "rates": None})
    assert (params.requests, params.seeds, len(params.scheduler.policies)) == (30, [7], 1)
    injected = {"params_file": str(path), "workload": {"length_scale": 0.5}, "requests": 5}  # by papermill -f
    assert Params.of_notebook(injected) == Params.parse({"workload": {"length_scale": 0.5}, "requests": 5}, "whole")


def test_the_grid_varies_estimates_only_where_they_matter_and_folders_differ_as_rates_do():
    params = Params.parse({"seeds": [1, 2], "scheduler": {"batching": ["static", "continuous"]}}, "test")
    runs = params.runs()
    assert len(runs) == len({run.name for run in runs}) == 2 * 2 * (4 + 4)
    assert len(params.policy_runs()) == 2 * 2 * 5 and len(params.estimate_runs()) == 2 * 2 * 4
    parts = params.policy_runs() + params.estimate_runs()
    assert {run.name for run in parts} == {run.name for run in runs}
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    params = Params.parse({"rates": [0.1234567, 0.1234568, 2.0, 1.0]}, "test")
    names = [run.name for run in params.runs()]
    assert len(set(names)) == len(names) and any("_rate2_" in name for name in names)


BAD_COMMANDS = [
    ("scheduler: {polices: [fifo]}", [], "scheduler.polices: unknown key"),
    ("workload: {phases: []}", ["--set", "workload.phases.0.a=1"], "workload.phases.0.a reaches into phases"),
]


@pytest.mark.parametrize(("text", "options", "message"), BAD_COMMANDS)
def test_the_command_line_refuses_in_one_message(tmp_path, capsys, text, options, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["run", str(path), "--out", str(tmp_path / "out"), *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(f"{path}: {message}") and len(shown.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


NO_OPTIONS = {"seeds": "is not KEY=VALUE", "seeds=[": "the value is not YAML", "a={b: 1, b: 2}": "b is given twice"}


@pytest.mark.parametrize(("option", "message"), NO_OPTIONS.items())
def test_an_override_that_is_none_or_comes_twice_is_refused(capsys, option, message):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "p.yaml", "--out", "x", "--set", option])
    assert message in capsys.readouterr().err
    assert main(["run", "p.yaml", "--out", "x", "--set", "seeds=1", "--set", "seeds=2"]) == 2
    assert capsys.readouterr().err == "--set: seeds is given twice\n"


def test_nothing_heavy_is_imported_before_parameters_are_refused(tmp_path):
    """And nothing but the message is written."""
    path = tmp_path / "bad.yaml"
    path.write_text("polices: [fifo]")
    code = (
        "import sys; from driftsched_lib.__main__ import main; "
        f"status = main(['run', {str(path)!r}, '--out', {str(tmp_path / 'out')!r}]); "
        "assert not {'vllm', 'torch', 'transformers'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_an_interrupt_while_parameters_are_written_stays_one(monkeypatch):
    def interrupted(value):
        raise KeyboardInterrupt

    class Held(Validated):
        policy: Annotated[str, PlainSerializer(interrupted)] = "fifo"

    with pytest.raises(KeyboardInterrupt):
        Held().model_dump()
