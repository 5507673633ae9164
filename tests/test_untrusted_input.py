"""What users and files bring (prompts, names, traces, YAML, saved state) is data: never run, rendered, or a path."""

import ast
import json
import pickle
import re

import nbformat
import pandas as pd
import pytest
import yaml
from simulation import PAPER_L4, SMALL

from driftsched_lib import Params, results, run_grid
from driftsched_lib.engines.profile import Profile
from driftsched_lib.errors import DriftSchedError, ParamsError
from driftsched_lib.estimators.state import load_estimator
from driftsched_lib.figures.report import write_report
from driftsched_lib.validation import PROJECT, YamlLoader
from driftsched_lib.workloads.traces import read_trace

SCRIPT = "<script>document.title='run'</script><img src=x onerror=alert(1)>"
NAMES = [SCRIPT, "../../../escaped", "/etc/passwd", "..", "a\nb", "=cmd|' /C calc'!A0", "{0.__class__}", "%s%n"]
NAMES += ["$(id)", "\u202e"]
ONE_RUN = {"seeds": [1], "scheduler.batching": ["continuous"], "scheduler.vary_estimates_for": []}


def files(folder):
    return {path.name for path in folder.iterdir()}


class Bomb(str):
    """Unpickled, it leaves a file behind."""

    def __reduce__(self):
        return open, (str(self), "w")


def test_names_of_tenants_and_fields_of_a_trace_are_data_and_no_paths(tmp_path):
    trace, out = tmp_path / "trace.csv", tmp_path / "runs" / "out"
    rows = "".join(f'{i},5,6,"{name}"\n' for i, name in enumerate(NAMES))
    trace.write_text(f"arrival,prompt_tokens,output_tokens,tenant\n{rows}", encoding="utf-8")
    assert pd.concat(read_trace(trace, "csv")).tenant.tolist() == NAMES
    tenants = {"workload.tenants": dict.fromkeys(NAMES, "standard"), "requests": 120}
    of_a_trace = {"workload.trace": {"file": str(trace), "format": "csv"}, "requests": len(NAMES)}
    for changes, place in ((tenants, out), (of_a_trace, out.with_name("of a trace"))):
        params = Params.load(PAPER_L4, ONE_RUN | changes | {"scheduler.policies": ["fifo", "vtc", "drr", "wfq"]})
        run_grid(params, place, jobs=1)
        assert set(results.load(place).tenant) == set(NAMES)
        beside = {".lock", "params.yaml", "engine_speed.json", "summary.csv"}
        assert files(place) == {run.name for run in params.runs()} | beside
    assert (files(tmp_path), files(out.parent)) == ({"trace.csv", "runs"}, {"out", "of a trace"})


WORDS = ["!!python/object/apply:os.system ['touch {flag}']", "!!python/name:os.system", "!x 1"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("read", [Params.load, lambda path: list(read_trace(path, "clients"))])
def test_tags_of_yaml_are_refused(read, word, tmp_path):
    flag, path = tmp_path / "flag", tmp_path / "file.yaml"
    path.write_text(f"seeds: {word.format(flag=flag)}\n")
    with pytest.raises(ParamsError, match="file.yaml: is not YAML: could not determine a constructor"):
        read(path)
    assert not flag.exists()


READERS = [Params.load, load_estimator, Profile.load, lambda path: list(read_trace(path, "parquet"))]


@pytest.mark.parametrize("read", READERS)
def test_pickles_are_refused_and_not_opened(read, tmp_path):
    flag, path = tmp_path / "flag", tmp_path / "file"
    path.write_bytes(pickle.dumps(Bomb(flag), protocol=0))
    with pytest.raises(DriftSchedError, match=str(path)):
        read(path)
    assert not flag.exists()
    pickle.loads(path.read_bytes()).close()
    assert flag.exists()  # it does go off where it is opened


def test_nothing_in_the_package_can_run_what_it_reads():
    forbidden_imports = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    forbidden_arguments = {"shell", "allow_pickle", "trust_remote_code"}
    forbidden_calls = {"eval", "exec", "compile", "yaml.unsafe_load", "os.system"}
    assert issubclass(YamlLoader, yaml.SafeLoader)
    for path in (PROJECT / "driftsched_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not forbidden_imports & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                assert call not in forbidden_calls and (call != "yaml.load" or node.args[1].id == "YamlLoader"), path
                assert not forbidden_arguments & {keyword.arg for keyword in node.keywords}, path


def test_names_and_parameters_are_no_html_in_the_report(tmp_path):
    tenants = {"<script>alert(1)</script>": "premium"} | dict.fromkeys(NAMES, "standard")
    run_grid(Params.load(PAPER_L4, SMALL | {"workload.tenants": tenants, "engine.model": SCRIPT}), tmp_path, jobs=1)
    table = pd.DataFrame({"tenant": NAMES, "requests": 1})
    shown = nbformat.v4.new_output("execute_result", {"text/html": table._repr_html_(), "text/plain": repr(table)})
    printed = nbformat.v4.new_output("stream", text=f"tenant {SCRIPT}")
    cells = [nbformat.v4.new_markdown_cell(f"# {SCRIPT}"), nbformat.v4.new_code_cell("", outputs=[shown, printed])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    write_report(tmp_path, [tmp_path / "a.ipynb"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"<script|<img src=x", page)
    for said in ("&lt;script&gt;alert(1)&lt;/script&gt;: premium", "<pre>tenant &lt;script&gt;", "<td>&lt;script&gt;"):
        assert said in page
    assert len(re.findall(r"<summary>&lt;script&gt;", page)) == 1


def test_what_is_written_is_safe_to_read_back(tmp_path):
    params = Params.load(PAPER_L4, {"workload.tenants": dict.fromkeys(NAMES, "batch")})
    text = yaml.safe_dump(params.model_dump(), sort_keys=False)
    assert "!!" not in text and Params.parse(yaml.safe_load(text), "again") == params
    assert list(json.loads(json.dumps(params.model_dump()))["workload"]["tenants"]) == NAMES
