"""The explorer shows what the simulator says, of two schedulers on the same requests."""

from html import escape
from pathlib import Path
from unittest.mock import Mock

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation import contents

from driftsched_lib import Params, run_grid
from driftsched_lib.engines.load import load_engine
from driftsched_lib.errors import RunError
from driftsched_lib.experiments.results import load
from driftsched_lib.explorer import Choice, Explorer, setting
from driftsched_lib.figures.explorer import slots
from driftsched_lib.studies.compare import mean, quantile, relative_change
from driftsched_lib.validation import PROJECT

PROFILE = "data/profiles/driftsched-tiny-cpu.json"
QUICK = PROJECT / "params" / "quick.yaml"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return Explorer(Params.load(QUICK, {"requests": 60}), PROFILE, tmp_path_factory.mktemp("out"))


@pytest.fixture
def explorer(shared, tmp_path):
    """An explorer as it is at first; it takes seconds to make."""
    before, values = vars(shared).copy(), {each: each.value for each in controls(shared)}
    shared.served, shared.out = dict(shared.served), tmp_path / "out"
    yield shared
    shared.update = lambda: None  # nobody looks
    for each, value in values.items():
        each.value = value
    vars(shared).clear()
    vars(shared).update(before)


def controls(explorer):
    return [each for some in (explorer.load_controls, *explorer.side_controls.values()) for each in some.values()]


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


CONTROLS = {(None, "load_factor"): 1.0, (None, "tenants"): 30, (None, "drift"): "new_tenant", (None, "seed"): 2}
CONTROLS |= {("A", "policy"): "priority", ("B", "policy"): "express", ("A", "batching"): "static"}
CONTROLS |= {("B", "estimator"): "oracle"}


@pytest.mark.parametrize(("side", "name"), CONTROLS)
def test_each_control_changes_its_sides_and_nothing_else(explorer, side, name):
    before, picture, table = dict(explorer.served), explorer.image.value, explorer.table.value
    control(explorer, name, side).value = CONTROLS[side, name]
    changed = {key for key in before if explorer.served[key] is not before[key]}
    assert changed == ({"A", "B"} if side is None else {side})
    assert explorer.image.value != picture and bytes(explorer.image.value).startswith(b"\x89PNG")
    assert explorer.table.value != table


def test_a_side_is_what_a_grid_of_its_saved_setting_gives_and_a_real_run_leaves_that_as_it_is(
    explorer, tmp_path, monkeypatch
):
    control(explorer, "seed").value = 2
    control(explorer, "policy", "B").value = "express"
    saved = Params.load(explorer.save("B"))
    assert saved == setting(explorer.real, Choice("express", seed=2))
    assert str(tmp_path / "out") in explorer.message.value
    simulated = saved.changed(engine__kind="simulated", engine__args={}, engine__profile=PROFILE)
    grid = explorer.message.value.split()[-1]  # what the message says to give as --out
    run_grid(simulated, grid, jobs=1)
    by_grid = load(grid).set_index("request_id").sort_index()
    shown = explorer.served["B"].done.set_index("request_id").sort_index()
    columns = ["tenant", "arrival_s", "dispatch_s", "finish_s", "estimated_tokens"]
    pd.testing.assert_frame_equal(shown[columns], by_grid[columns], check_dtype=False, atol=1e-6)
    before, served = contents(Path(grid)), explorer.served["B"]
    tables = {"requests": served.done, "queue_depth": served.depth}, {"run": {}, "started": ""}
    for name, made in {"load_engine": None, "measure_speed": explorer.speed, "serve_run": tables}.items():
        monkeypatch.setattr(f"driftsched_lib.explorer.{name}", Mock(return_value=made))
    click(explorer, "Run B on real vLLM")
    assert "kept in" in explorer.message.value and contents(Path(grid)) == before


def test_a_run_is_watched_and_kept(explorer):
    """The simulator in the place of vLLM, which the test in a browser runs."""
    explorer.engine, explorer.engine_speed = load_engine(explorer.simulated.engine), explorer.speed
    lives, counts = [], []
    explorer.live.observe(lambda change: lives.append(bytes(change.new)), names="value")
    explorer.progress.observe(lambda change: counts.append(change.new), names="value")
    click(explorer, "Run B on real vLLM")
    assert "kept in" in explorer.message.value and "simulated" in explorer.message.value, explorer.message.value
    assert explorer.progress.value == explorer.progress.max == 60 and counts[-60:] == list(range(1, 61))
    assert lives and all(image.startswith(b"\x89PNG") for image in lives)
    [run] = (explorer.out / "real").iterdir()
    assert (pd.read_parquet(run / "requests.parquet").outcome == "completed").all()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunError("the engine <b>died"), RuntimeError("8 in flight")])
def test_after_an_interrupt_or_a_failure_the_next_press_has_a_new_engine(explorer, monkeypatch, error):
    loaded, served = [], explorer.served["A"]
    whole = load_engine(explorer.simulated.engine)
    broken = Mock(limits=whole.limits)
    broken.restart_clock.side_effect = error
    engines = [broken, whole]

    def serve_run(params, run, engine, *rest):
        engine.restart_clock()
        return {"requests": served.done, "queue_depth": served.depth}, {"run": {}, "started": ""}

    def load(params):
        return whole if params.kind == "simulated" else loaded.append(params) or engines.pop(0)

    monkeypatch.setattr("driftsched_lib.explorer.load_engine", load)
    monkeypatch.setattr("driftsched_lib.explorer.measure_speed", lambda params, engine: explorer.speed)
    monkeypatch.setattr("driftsched_lib.explorer.serve_run", serve_run)
    click(explorer, "Run A on real vLLM")
    assert explorer.message.value == "stopped; press again" or escape(str(error)) in explorer.message.value
    broken.close.assert_called_once()
    click(explorer, "Run A on real vLLM")
    assert "kept in" in explorer.message.value and len(loaded) == 2


def test_a_change_that_fails_is_said_and_leaves_no_stale_picture(explorer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("driftsched_lib.explorer.simulate", lambda params, speed: 1 / 0)
        control(explorer, "seed").value = 2
        assert "division by zero" in explorer.message.value
        assert explorer.image.layout.display == explorer.table.layout.display == "none"
    control(explorer, "seed").value = 3
    assert explorer.message.value == "" and explorer.image.layout.display is None


@pytest.mark.parametrize("tier", ["all", "premium"])
def test_differences_are_those_of_the_paired_bootstrap(explorer, tier):
    a, b = (explorer.served[name].done.assign(side=name, seed=0) for name in "AB")
    both = pd.concat([a, b])
    both = both if tier == "all" else both[both.tier == tier]
    for name, statistic in {"mean": mean, "P50": quantile(0.5), "P99": quantile(0.99)}.items():
        change = relative_change(both, "e2e_s", statistic, {"side": "B"}, {"side": "A"}, resamples=400)
        assert explorer.differences().loc[tier, name] == f"{change:+.0%}"


def test_the_picture_holds_what_was_served(explorer):
    control(explorer, "policy", "B").value = "priority"
    for left, right in explorer.figure.axes:  # tick labels of neighbours do not touch
        assert left.xaxis.get_tightbbox().x1 + 5 < right.xaxis.get_tightbbox().x0
    titles = [axis.get_title(loc="left") for axis in explorer.figure.axes[0]]
    assert [title[0] for title in titles] == ["A", "B"]
    for column, served in enumerate(explorer.served.values()):
        ends = [axis.get_xlim()[1] for axis in explorer.figure.axes[:, column]]
        done, depth = served.done, served.depth
        shown = (done.e2e_s, depth.time_s, done.finish_s, done.actual_tokens, done.arrival_s)
        assert all(values.max() <= end for values, end in zip(shown, ends, strict=True))


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
