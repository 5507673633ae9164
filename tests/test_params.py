"""Parameters: what is shipped is complete, and what is wrong is named, in one message, before anything is loaded."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import PlainSerializer

from driftsched_lib.__main__ import main
from driftsched_lib.errors import ParamsError
from driftsched_lib.experiments.params import PAPER_PHASES, Params, Phase, WorkloadParams
from driftsched_lib.validation import Validated

PARAMS = Path(__file__).parents[1] / "params"
SHIPPED = sorted(set(PARAMS.glob("*.yaml")) - {PARAMS / "plugin.yaml"})
PHASE = {"name": "a", "share": 1.0, "mix": {"report": 1.0}, "gap_s": [0.1, 0.2]}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_is_valid_and_names_every_parameter(path):
    """So that `papermill -f` on it gives exactly it, whatever a notebook's own file says."""
    Params.load(path)
    values = yaml.safe_load(path.read_text())
    assert set(values) == set(Params.model_fields)
    assert set(values["workload"]) == set(WorkloadParams.model_fields)
    assert all(set(phase) == set(Phase.model_fields) for phase in values["workload"]["phases"])


def test_the_papers_file_has_the_papers_constants():
    params = Params.load(SHIPPED[[path.stem for path in SHIPPED].index("paper")])
    assert params.max_tokens == {"short_qa": 64, "summary": 256, "technical": 384, "report": 512}
    assert params.job_class_bounds == [128, 512]
    assert (params.batch_size, params.batch_wait_s, params.batching) == (32, 0.01, ["static"])
    assert (params.requests, len(params.seeds), params.cooling_s, params.temperature) == (3000, 3, 60.0, 0.7)
    assert [str(policy) for policy in params.policies] == ["fifo", "priority", "weighted", "sjf", "aging"]
    assert (params.model, params.engine_args) == ("Qwen/Qwen1.5-1.8B-Chat", Params().engine_args)
    assert (params.engine_args["dtype"], params.engine_args["gpu_memory_utilization"]) == ("float16", 0.70)
    assert (params.workload.tenants, params.workload.label_prefix) == (Params().workload.tenants, True)
    assert (params.queue_depth_interval_s, params.telemetry_interval_s) == (1.0, 0.2)
    assert [phase.gap_s for phase in PAPER_PHASES] == [[0.05, 0.15], [0.005, 0.03]]
    mixes = [[phase.mix[category] for category in params.base_tokens] for phase in PAPER_PHASES]
    assert mixes == [[0.40, 0.25, 0.25, 0.10], [0.10, 0.20, 0.40, 0.30]]
    for phase, paper in zip(params.workload.phases, PAPER_PHASES, strict=True):
        assert phase == paper.model_copy(update={"share": phase.share})
        assert phase.share == pytest.approx(paper.share)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"polices": ["fifo"]}, r"polices: unknown key.*did you mean 'policies'\?"),
        ({"workload": {"phase": []}}, r"workload.phase: unknown key.*did you mean 'phases'\?"),
        ({"requests": "many"}, "requests: input should be a valid integer, not 'many'"),
        ({"calibration": "yes"}, "calibration.0: input should be a valid boolean, not 'yes'"),
        ({"batch_size": 0}, "batch_size: input should be greater than or equal to 1, not 0"),
        ({"engine": "tgi"}, "engine: input should be 'vllm', 'simulated' or 'server', not 'tgi'"),
        ({"engine": "simulated"}, "bad.yaml: engine: the simulated engine needs a profile"),
        ({"replicas": 2}, "bad.yaml: engine: a profile and replicas are for the simulated engine"),
        ({"profile": "a.json"}, "bad.yaml: engine: a profile and replicas are for the simulated engine"),
        ({"policies": "srpt"}, "bad.yaml: policies: srpt preempts: a single simulated engine can, and vLLM with"),
        (
            {"engine": "simulated", "profile": "a", "replicas": 2, "policies": ["fifo", "srpt"]},
            "bad.yaml: policies: srpt preempts: a single simulated engine can",
        ),
        ({"engine": "simulated", "profile": "a", "output_length": "natural"}, "output_length: no model ends an output"),
        ({"estimators": "oracle", "output_length": "natural"}, "estimators: the oracle knows pinned lengths alone"),
        (
            {"workload": {"phases": [PHASE | {"lengths": "a.json"}]}, "output_length": "spread"},
            "output_length: a phase's lengths pin the outputs",
        ),
        (
            {"spread": {"mean_share": 0.0, "cv": 0.5}},
            "spread.mean_share: input should be greater than or equal to 0.000000001, not 0.0",
        ),
        ({"batching": "dynamic"}, "batching.0: input should be 'static' or 'continuous', not 'dynamic'"),
        ({"policies": ["fifo", "sjv"]}, r"policies.1: 'sjv' is unknown, did you mean 'sjf'\? \(it may be fifo, "),
        ({"policies": [{"aging": {"rat": 1}}]}, r"policies.0: rat: unknown key.*did you mean 'rate'\?"),
        ({"policies": [{"aging": {"rate": -1.0}}]}, "policies.0: rate is -1.0, it must be a number that is not neg"),
        ({"policies": [{"aging": {"rate": float("nan")}}]}, "rate: input should be a finite number, not nan"),
        ({"policies": [{"priority": {"ranks": {"premium": 1}}}]}, "policies.0: ranks is .* it must name premium"),
        ({"policies": [{"weighted": {"turns": {"premium": "x"}}}]}, "turns.premium: input should be .*, not 'x'$"),
        ({"policies": [{"fifo": 3}]}, "policies.0: the arguments of fifo must be a mapping of names to values$"),
        ({"policies": None}, r"policies.0: None is unknown \(it may be fifo, "),
        ({"vary_estimates_for": ["sjv"]}, r"vary_estimates_for: 'sjv' is unknown, did you mean 'sjf'\?"),
        ({"policies": []}, "policies: list should have at least 1 item"),
        ({"seeds": [1, 2, 1]}, "seeds: the same value is given twice"),
        ({"estimators": {"paper": {"alpha": 0}}}, "estimators.0: alpha is 0.0, it must be above 0"),
        ({"estimators": {"paper": {"calibrate": True}}}, "estimators.0: calibrate: unknown key"),
        ({"base_tokens": {"report": 5}}, "base_tokens: a base for short_qa, summary, technical is missing"),
        ({"job_class_tokens": [512, 128]}, r"job_class_tokens: must be two rising .*not \[512, 128\]$"),
        ({"workload": {"phases": [{"name": "a"}]}}, "workload.phases.0.share: is missing"),
        ({"workload": {"phases": [PHASE | {"mix": {"reprot": 1.0}}]}}, "mix.reprot.*or 'report', not 'reprot'"),
        ({"workload": {"phases": [PHASE | {"gaps": 1}]}}, r"0.gaps: unknown key.*'gap_s'\? \(it may be name, "),
        ({"workload": {"tenants": {}}}, "workload.tenants: dictionary should have at least 1 item"),
        ({"temperature": float("nan")}, "temperature: input should be"),
        ({"workload": {"phases": [PHASE | {"mix": {"report": 0.9}}]}}, "0.mix: the shares must sum to 1, they sum to"),
        ({"workload": {"phases": [PHASE | {"gap_s": [-0.1, 0.2]}]}}, "0.gap_s.0: input should be greater than"),
        ({"workload": {"phases": [PHASE | {"gap_s": [0.3, 0.2]}]}}, "0.gap_s: must be two rising numbers"),
        ({"workload": {"phases": [PHASE | {"share": 0.5}]}}, "workload.phases: the shares must sum to 1"),
        ({"workload": {"tenants": {"a": "gold"}}}, "tenants.a: input should be 'premium', 'standard' or 'batch'"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_file_and_field(values, message):
    with pytest.raises(ParamsError, match=message) as error:
        Params.parse(values, "bad.yaml")
    assert str(error.value).startswith("bad.yaml: ")


def test_every_fault_has_its_line():
    with pytest.raises(ParamsError) as error:
        Params.parse({"requests": 0, "seeds": "x"}, "bad.yaml")
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == ["seeds.0", "requests"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("a: [", "is not YAML"),
        ("a: 2024-99-99", "is not YAML"),
        ("- 1", "must be a mapping"),
        ("\xff", "must be a mapping"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, text, message):
    path = tmp_path / "p.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ParamsError, match=f"p.yaml: {message}"):
        Params.load(path)


def test_overrides_reach_into_mappings_and_no_further(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("requests: 30\n")
    params = Params.load(path, {"workload.label_prefix": False, "policies": "sjf"})
    assert not params.workload.label_prefix and [str(policy) for policy in params.policies] == ["sjf"]
    with pytest.raises(ParamsError, match="requests.x reaches into requests, which is not a mapping"):
        Params.load(path, {"requests.x": 1})


def test_what_is_written_is_read_back():
    values = {"policies": [{"aging": {"rate": 0.5}}, "fifo"], "estimators": [{"paper": {"clip": [0.5, 2.0]}}]}
    params = Params.parse(values, "test")
    written = params.model_dump()
    assert {name: written[name] for name in values} == values
    assert yaml.safe_load(yaml.safe_dump(written)) == written  # or a grid with such options could not be taken up again
    assert Params.parse(written, "again") == params


def test_a_notebooks_parameter_cells_override_its_file(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("requests: 30\nseeds: [1]\n")
    cells = ["import x", f'params_file = "{path}"\nout = "runs"', "# Parameters\nseeds = [7]", "requests = 5"]
    namespace = {"In": cells, "params_file": str(path), "out": "runs", "seeds": [7], "requests": 5, "other": [1]}
    params = Params.from_notebook(namespace, path)
    assert (params.requests, params.seeds) == (30, [7])  # requests was set in a cell that is not for parameters
    with pytest.raises(ParamsError, match=r"sedes: unknown key.*did you mean 'seeds'\?"):
        Params.from_notebook({"In": ["# Parameters\nsedes = [7]"], "sedes": [7]}, path)


def test_the_grid_varies_estimates_only_where_they_matter():
    params = Params.parse({"seeds": [1, 2], "batching": ["static", "continuous"]}, "test")
    runs = params.runs()
    assert len(runs) == len({run.name for run in runs}) == 2 * 2 * (4 + 4)
    assert len(params.policy_runs()) == 2 * 2 * 5 and len(params.estimate_runs()) == 2 * 2 * 4
    parts = params.policy_runs() + params.estimate_runs()
    assert {run.name for run in parts} == {run.name for run in runs}
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


BAD_COMMANDS = [
    ("polices: [fifo]", [], "{path}: polices: unknown key"),
    ("seeds: [x]", [], "{path}: seeds.0: input should be a valid integer, not 'x'"),
    ("", [], "{path}: must be a mapping"),
    (
        "workload: {phases: []}",
        ["--set", "workload.phases.0.share=1"],
        "{path}: workload.phases.0.share reaches into phases",
    ),
]


@pytest.mark.parametrize(("text", "options", "message"), BAD_COMMANDS)
def test_the_command_line_refuses_in_one_message(tmp_path, capsys, text, options, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["run", str(path), "--out", str(tmp_path / "out"), *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(message.format(path=path)) and len(shown.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("option", "message"), [("seeds", "is not KEY=VALUE"), ("seeds=[", "the value is not YAML")])
def test_an_override_that_is_none_is_refused(capsys, option, message):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "p.yaml", "--out", "x", "--set", option])
    assert message in capsys.readouterr().err


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
