"""The explorer shows what the simulator says, of two schedulers on the same requests."""

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched_lib.experiment import run_grid
from driftsched_lib.explorer import Explorer, Load, Side, setting
from driftsched_lib.figures.explorer import slots
from driftsched_lib.params import Params
from driftsched_lib.results import load
from driftsched_lib.validation import PROJECT

PROFILE = "data/profiles/driftsched-tiny-cpu.json"
QUICK = PROJECT / "params" / "quick.yaml"
SMOKE = PROJECT / "params" / "smoke.yaml"


@pytest.fixture
def explorer(tmp_path):
    return Explorer(Params.load(QUICK, {"requests": 60}), PROFILE, tmp_path / "out")


def click(explorer, text):
    [button] = [button for button in buttons(explorer.widget) if button.description == text]
    button.click()


def buttons(widget):
    if isinstance(widget, widgets.Button):
        yield widget
    for child in getattr(widget, "children", ()):
        yield from buttons(child)


def control(explorer, name, side=None):
    return (explorer.load_controls if side is None else explorer.side_controls[side])[name]


@pytest.mark.parametrize(
    ("side", "name", "value"),
    [
        (None, "load_factor", 1.0),
        (None, "tenants", 30),
        (None, "drift", "new_tenant"),
        (None, "seed", 2),
        ("A", "policy", "priority"),
        ("B", "policy", "express"),
        ("A", "batching", "static"),
        ("B", "estimator", "oracle"),
    ],
)
def test_each_control_changes_its_sides_and_nothing_else(explorer, side, name, value):
    before, picture, table = dict(explorer.served), explorer.image.value, explorer.table.value
    control(explorer, name, side).value = value
    changed = {key for key in before if explorer.served[key] is not before[key]}
    assert changed == ({"A", "B"} if side is None else {side})
    assert explorer.image.value != picture and bytes(explorer.image.value).startswith(b"\x89PNG")
    assert explorer.table.value != table


def test_a_side_is_what_a_grid_of_its_saved_setting_gives(explorer, tmp_path):
    control(explorer, "seed").value = 2
    control(explorer, "policy", "B").value = "express"
    saved = Params.load(explorer.save("B"))
    assert saved == setting(explorer.real, Load(seed=2), Side("express"))
    assert str(tmp_path / "out") in explorer.message.value
    simulated = saved.model_copy(update={"engine": "simulated", "engine_args": {}, "profile": PROFILE})
    run_grid(simulated, tmp_path / "grid", jobs=1)
    by_grid = load(tmp_path / "grid").set_index("request_id").sort_index()
    shown = explorer.served["B"].done.set_index("request_id").sort_index()
    columns = ["tenant", "arrival_s", "dispatch_s", "finish_s", "estimated_tokens"]
    pd.testing.assert_frame_equal(shown[columns], by_grid[columns], check_dtype=False, atol=1e-6)


def test_alike_sides_do_not_differ(explorer):
    control(explorer, "policy", "B").value = "fifo"
    assert (explorer.differences() == "+0% [+0%, +0%]").all(axis=None)


def test_a_side_runs_on_real_vllm(tmp_path):
    params = Params.load(SMOKE, {"requests": 40, "queue_depth_interval_s": 0.01})
    explorer = Explorer(params, PROFILE, tmp_path / "out")
    lives, counts = [], []
    explorer.live.observe(lambda change: lives.append(bytes(change.new)), names="value")
    explorer.progress.observe(lambda change: counts.append(change.new), names="value")
    click(explorer, "Run B on real vLLM")
    assert "kept in" in explorer.message.value and "simulated" in explorer.message.value, explorer.message.value
    assert explorer.progress.value == explorer.progress.max == 40 and counts[-40:] == list(range(1, 41))
    assert lives and all(image.startswith(b"\x89PNG") for image in lives)
    [run] = (tmp_path / "out").iterdir()
    assert (pd.read_parquet(run / "requests.parquet").outcome == "completed").all()


def test_what_fails_is_said(explorer):
    explorer.real = explorer.real.model_copy(update={"model": "no/such model <b>"})
    click(explorer, "Run A on real vLLM")
    assert "cannot be loaded" in explorer.message.value and "<b>" not in explorer.message.value


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.001, 50)), min_size=1, max_size=60))
def test_a_slot_holds_one_request_at_a_time_and_the_fewest_slots_do(spans):
    done = pd.DataFrame(spans, columns=["dispatch_s", "length_s"])
    done["finish_s"] = done.dispatch_s + done.length_s
    slot = slots(done)
    for _, mine in done.groupby(slot):
        mine = mine.sort_values("dispatch_s")
        assert (mine.finish_s.to_numpy()[:-1] <= mine.dispatch_s.to_numpy()[1:]).all()
    running = [((done.dispatch_s <= at) & (done.finish_s > at)).sum() for at in done.dispatch_s]
    assert slot.max() + 1 == np.max(running)
