"""Ctrl-C, pressed anywhere, stops the work between two steps of it, and is never lost."""

import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
from simulation import PAPER_L4, SMALL, contents

from driftsched_lib import Params, results, run_grid, scheduler, serving
from driftsched_lib.engines.load import load_engine
from driftsched_lib.errors import RunError
from driftsched_lib.experiments import grid as experiment
from driftsched_lib.experiments.interrupts import remembered
from driftsched_lib.experiments.run import serve_run
from driftsched_lib.experiments.speed import measure_speed
from driftsched_lib.policies import base, paper

FEW = SMALL | {"requests": 20, "scheduler.calibration": [True], "scheduler.vary_estimates_for": []}
MOMENTS = 20


def press():
    signal.raise_signal(signal.SIGINT)


def press_at(number, event, function):
    """Return `function` with Ctrl-C pressed at this call of any function, or line of the core, and what counts them."""
    core, seen = [module.__file__ for module in (scheduler, serving, base, paper)], 0

    def trace(frame, now, argument):
        nonlocal seen
        seen += now == event
        if now == event and seen == number:
            press()
        return trace if frame.f_code.co_filename in core else None

    def traced(*arguments):
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            return function(*arguments)
        finally:
            sys.settrace(before)

    return traced, lambda: seen


def test_ctrl_c_waits_for_the_next_check_or_the_end_and_a_second_one_does_not():
    done = []
    with pytest.raises(KeyboardInterrupt), remembered(at_once=False) as check:
        check()
        press()
        done.append("goes on")
        check()
        done.append("never")
    with pytest.raises(KeyboardInterrupt), remembered(at_once=False):
        press()
        done.append("goes on")
        press()
        done.append("never")
    with pytest.raises(KeyboardInterrupt), remembered(at_once=False):
        press()
        done.append("all of it")
    assert done == ["goes on", "goes on", "all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_a_destructor_which_swallows_it_is_raised_by_the_next_check():
    done = []
    with pytest.raises(KeyboardInterrupt), remembered(at_once=True) as check:
        type("PressedAsItGoes", (), {"__del__": lambda self: press()})()
        done.append("swallowed")
        check()
        done.append("never")
    assert done == ["swallowed"]


def test_the_inner_of_two_hears_it_alone_and_where_it_is_ignored_it_stays_so():
    with remembered(at_once=True) as outer:
        with pytest.raises(KeyboardInterrupt), remembered(at_once=False):
            press()
        outer()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with remembered(at_once=True) as check:
            press()
            check()
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_is_told_of_none():
    def work():
        with remembered(at_once=False) as check:
            check()
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(work).result() == signal.default_int_handler


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_grid_interrupted_anywhere_stops_and_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    params, serve_missing, whole = Params.load(PAPER_L4, FEW), experiment._serve_missing, tmp_path / "whole"
    run_grid(params, whole, jobs=1)

    def serve_again(out, number):
        """Serve the grid anew but for the engine's speed; return how many functions it calls."""
        out.mkdir()
        shutil.copy(whole / results.SPEED, out)
        pressed, calls = press_at(number, "call", serve_missing)
        with monkeypatch.context() as patch:
            patch.setattr(experiment, "_serve_missing", pressed)
            run_grid(params, out, jobs=1)
        return calls()

    calls = serve_again(tmp_path / "counted", None)
    for moment in range(MOMENTS):
        out = tmp_path / str(moment)
        with pytest.raises(KeyboardInterrupt, match=f"finished runs are kept in {out}: run the same again to go on"):
            serve_again(out, 1 + moment * calls // MOMENTS)
        run_grid(params, out, jobs=1)
        assert contents(out) == contents(whole)


def test_a_run_interrupted_at_any_line_ends_each_request_once_and_leaves_the_engine_empty():
    params = Params.load(PAPER_L4, FEW | {"requests": 6, "scheduler.policies": ["weighted"]})
    engine = load_engine(params.engine, log_steps=True)
    speed, run = measure_speed(params, engine), params.runs()[0]
    counted, lines = press_at(None, "line", serve_run)
    counted(params, run, engine, speed)
    for number in range(1, lines() + 1, 5):
        records = []
        with pytest.raises(KeyboardInterrupt):
            press_at(number, "line", serve_run)[0](params, run, engine, speed, records.append)
        assert len({record.request_id for record in records}) == len(records)
        engine.restart_clock()


@pytest.mark.parametrize("error", [KeyboardInterrupt("first"), RunError("first")])
def test_errors_whose_contexts_form_a_circle_are_raised_all_the_same(tmp_path, monkeypatch, error):
    error.__context__ = RunError("second")
    error.__context__.__context__ = error
    monkeypatch.setattr(experiment, "_serve_missing", Mock(side_effect=error))
    with pytest.raises(type(error)):
        run_grid(Params.load(PAPER_L4, FEW), tmp_path / "out")
