"""What an estimator has learnt survives a restart exactly, and a file that is not one is refused."""

import json
import re
from copy import deepcopy
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem

import pytest

from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators import ESTIMATORS, IntervalEstimator, Kalman, PaperEstimator, State
from driftsched_lib.estimators.state import load_estimator, save_estimator
from driftsched_lib.requests import BASE_TOKENS, Tier
from driftsched_lib.studies.drift_lab import lab_load, replay


@dataclass
class LastState(State):
    lengths: dict[str, int] = field(default_factory=dict)


class Last(IntervalEstimator):
    """A user's own: the last length of the category."""

    def __init__(self, base_tokens=BASE_TOKENS, factor: float = 1.0):
        super().__init__(base_tokens)
        self.factor = factor
        self.state_ = LastState(self.state_.intervals)

    def expect(self, request, base):
        return self.factor * self.state_.lengths.get(request.category, base)

    def learn(self, request, base, length):
        self.state_.lengths[request.category] = length


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.json"


TIERS = {"batch": Tier(safety=2.0), "standard": Tier(weight=7, ttft_slo_s=1.5), "premium": Tier()}  # no SLO is inf
ASKED = [Kalman(min_gain=0.3), PaperEstimator(clip=[0.5, 2.0], tiers=TIERS), Last(factor=2.0)]  # a list, as from YAML


@pytest.mark.parametrize("asked", [*(kind() for kind in ESTIMATORS.values()), *ASKED])
def test_a_restart_changes_nothing(asked, path):
    load, estimator = lab_load("abrupt", seed=1, requests=300), deepcopy(asked)
    replay(estimator, load[:150], delay=3)
    save_estimator(estimator, path)
    restarted = load_estimator(path)
    assert type(restarted) is type(estimator) and vars(restarted) == {"state_": None, **vars(estimator)}
    assert list(getattr(restarted, "tiers", ())) == list(getattr(estimator, "tiers", ()))  # the best first
    assert replay(restarted, load[150:]).equals(replay(estimator, load[150:]))
    save_estimator(restarted, path)
    assert load_estimator(path).state_ == estimator.state_
    assert [file.name for file in path.parent.iterdir()] == ["state.json"]


UNSAVED = [
    (object(), "'builtins:object' is unknown"),
    (type("Local", (Last,), {})(), "Local' is unknown"),
    (Last.__new__(Last), "base_tokens, factor must be a parameter and an attribute, or in state_"),
]


@pytest.mark.parametrize(("bad", "message"), UNSAVED)
def test_an_estimator_that_does_not_follow_the_convention_is_not_saved(bad, message, path):
    with pytest.raises(ValueError, match=message):
        save_estimator(bad, path)
    assert not path.exists()


RENAMED = "a name with `not` before it"


def places(value, path=()):
    """Paths to all that a file holds, one entry for each kind of list, and one category for all."""
    if path:
        yield path
    if isinstance(value, dict):
        names = ["summary"] if set(value) == set(BASE_TOKENS) else value
        for name in names:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def each_place(text):
    """Each place with the content anew and what holds the place in it."""
    for place in places(json.loads(text)):
        content = json.loads(text)
        yield place, content, reduce(getitem, place[:-1], content)


@pytest.fixture(scope="module", params=ESTIMATORS)
def saved(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "state.json"
    estimator = ESTIMATORS[request.param]()
    replay(estimator, lab_load("abrupt", seed=1, requests=120))
    save_estimator(estimator, path)
    return path.read_text()


def may_be(place, bad, before):
    """Whether the value is a right one at this place, or the place one that may go."""
    if bad is RENAMED:  # lists have no fields; other bases, tenants and tiers may be, and a tier's fields have defaults
        inside = {"base_tokens", "tiers"} & set(place[:-1]) or ("tenants" in place[:-1] and len(place) <= 4)
        return inside or isinstance(place[-1], int)
    if isinstance(bad, float):
        return bad == float("inf") and str(place[-1]).endswith("slo_s")
    of_one_type = type(bad) is type(before) and not isinstance(bad, dict | str)
    return of_one_type or (isinstance(bad, dict) and place[-1] == "base_tokens")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "text", None, [], {"foreign": 1}, RENAMED], ids=repr)
def test_whatever_is_damaged_missing_or_unknown_is_named(saved, bad, path):
    """Every place of every file in turn, except where the bad value would be a right one."""
    checked = 0
    for place, content, parent in each_place(saved):
        last = place[-1]
        if may_be(place, bad, parent[last]):
            continue
        parent[f"not{last}" if bad is RENAMED else last] = parent.pop(last) if bad is RENAMED else bad
        path.write_text(json.dumps(content))
        with pytest.raises(ParamsError, match=f"^{re.escape(str(path))}: .*{place[0]}"):
            load_estimator(path)
        checked += 1
    assert checked >= 4


NAME = '"format": "driftsched-estimator"'
HEAD = f'{{{NAME}, "version": 2, "estimator": '
FOREIGN = {
    "": "invalid JSON",
    '{"format": "driftsched-est': "invalid JSON",
    "[" * 100_000: "invalid JSON",
    "[]": "should be an object",
    '{"learnt": 1}': "format: is missing",
    f'{{{NAME}, "version": 1}}': "version: input should be 2, not 1",
    HEAD + '"x"}': "parameters: is missing",
    HEAD + '"x", "parameters": {}, "state": {}}': "estimator: 'x' is unknown. .*Known: paper, .*",
    HEAD + '"subprocess:Popen", "parameters": {"args": ["id"]}, "state": {}}': "is unknown",
    HEAD + '"antigravity:fly", "parameters": {}, "state": {}}': "a module that has been imported",
    HEAD + '"oracle", "parameters": {"base_tokens": {"summary": 0}}, "state": null}': "base_tokens is",
}


@pytest.mark.parametrize(("text", "message"), FOREIGN.items(), ids=range(len(FOREIGN)))
def test_foreign_files_are_refused(text, message, path):
    path.write_text(text)
    with pytest.raises(ParamsError, match=message):
        load_estimator(path)


def test_unreadable_files_are_refused(path):
    path.write_bytes(b"\xff\xfe\x00")
    for unreadable in (path, path.parent, path.with_name("none.json")):
        with pytest.raises(ParamsError, match="cannot be read"):
            load_estimator(unreadable)


@pytest.mark.parametrize("bad", [1e6, -1e6, 1e300, 0, 10**30], ids=repr)
def test_a_number_that_is_absurd_is_refused_or_can_be_used(saved, bad, path):
    """Every number of every file in turn."""
    load, refused = lab_load("abrupt", seed=2, requests=40), 0
    for place, content, parent in each_place(saved):
        if type(parent[place[-1]]) not in (int, float):
            continue
        parent[place[-1]] = bad
        path.write_text(json.dumps(content))
        try:
            estimator = load_estimator(path)
        except ParamsError:
            refused += 1
            continue
        for request in load:
            estimate = estimator.estimate(request)
            assert 0 <= estimate.low_tokens <= estimate.high_tokens, place
            assert estimate.quantiles is None or min(estimate.quantiles) >= 0, place
            estimator.observe(request, request.fixed_output_tokens)
        save_estimator(estimator, path)
        load_estimator(path)
    assert refused >= 1 or bad == 0


def test_a_state_that_cannot_be_read_back_is_never_written_and_another_is_first_on_the_disk(path, monkeypatch):
    kalman, calls = Kalman(), []
    save_estimator(kalman, path)
    before = path.read_text()
    kalman.state_.levels["summary"].level = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_estimator(kalman, path)
    assert path.read_text() == before
    monkeypatch.setattr("os.fsync", lambda number: calls.append("fsync"))
    monkeypatch.setattr("os.replace", lambda source, target: calls.append("replace"))
    save_estimator(Kalman(), path)
    assert calls == ["fsync", "replace"]
