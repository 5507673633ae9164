"""What an estimator has learnt survives a restart exactly, and a file that is not one is refused."""

import json
from itertools import count

import pytest

from driftsched_lib.errors import ParamsError
from driftsched_lib.estimators import ESTIMATORS, Kalman
from driftsched_lib.estimators.state import load_estimator, save_estimator
from driftsched_lib.requests import BASE_TOKENS
from driftsched_lib.studies.drift_lab import lab_load, replay


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_restart_changes_nothing(name, tmp_path):
    load = lab_load("abrupt", seed=1, requests=300)
    estimator, path = ESTIMATORS[name](), tmp_path / "state.json"
    replay(estimator, load[:150], delay=3)
    save_estimator(estimator, path)
    restarted = load_estimator(path)
    assert type(restarted) is type(estimator) and restarted.state_ == estimator.state_
    assert replay(restarted, load[150:]).equals(replay(estimator, load[150:]))
    save_estimator(restarted, path)
    assert load_estimator(path).state_ == estimator.state_
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_parameters_come_back(tmp_path):
    save_estimator(Kalman({"summary": 9}, least_gain=0.3), tmp_path / "state.json")
    kalman = load_estimator(tmp_path / "state.json")
    assert kalman.base_tokens == {"summary": 9} and kalman.least_gain == 0.3


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


def put(content, path, value):
    for name in path[:-1]:
        content = content[name]
    content[path[-1]] = value


@pytest.fixture(scope="module", params=ESTIMATORS)
def saved(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "state.json"
    estimator = ESTIMATORS[request.param]()
    replay(estimator, lab_load("abrupt", seed=1, requests=120))
    save_estimator(estimator, path)
    return path.read_text()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "text", None, [], {"foreign": 1}], ids=repr)
def test_whatever_is_damaged_is_named(saved, bad, tmp_path):
    """Every place of every file in turn, except where the bad value would be a right one."""
    path, checked = tmp_path / "state.json", count()
    for place in places(json.loads(saved)):
        content = json.loads(saved)
        before = content
        for name in place:
            before = before[name]
        if (bad is None and before is None) or (bad == [] and isinstance(before, list)):
            continue
        if place == ("parameters", "base_tokens") and isinstance(bad, dict):
            continue
        put(content, place, bad)
        path.write_text(json.dumps(content))
        with pytest.raises(ParamsError) as caught:
            load_estimator(path)
        first, *_ = place
        assert str(caught.value).startswith(f"{path}: ") and str(first) in str(caught.value)
        next(checked)
    assert next(checked) >= 4


def test_a_missing_or_unknown_field_is_named(saved, tmp_path):
    path = tmp_path / "state.json"
    for place in places(json.loads(saved)):
        if isinstance(place[-1], int) or "base_tokens" in place[:-1] or ("tenants" in place[:-1] and len(place) <= 4):
            continue  # lists have no fields, bases may be of other categories, tenants may come and go
        content = json.loads(saved)
        parent = content
        for name in place[:-1]:
            parent = parent[name]
        parent["not" + place[-1]] = parent.pop(place[-1])
        path.write_text(json.dumps(content))
        with pytest.raises(ParamsError, match=str(path)):
            load_estimator(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ('{"format": "driftsched-est', "is not JSON"),
        ("[]", "format: is not 'driftsched-estimator'"),
        ('{"learnt": 1}', "format: is not"),
        ('{"format": "driftsched-estimator", "version": 2}', "version: is 2, this program reads 1"),
        ('{"format": "driftsched-estimator", "version": 1}', "must be format, version, estimator"),
        (
            '{"format": "driftsched-estimator", "version": 1, "estimator": "x", "parameters": {}, "state": {}}',
            "estimator: is 'x', it may be one of paper",
        ),
        (
            '{"format": "driftsched-estimator", "version": 1, "estimator": "oracle",'
            ' "parameters": {"base_tokens": {"summary": 0}}, "state": null}',
            "parameters: base_tokens is",
        ),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_foreign_files_are_refused(text, message, tmp_path):
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(ParamsError, match=message):
        load_estimator(path)


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "none.json", tmp_path / "bytes.json"):
        with pytest.raises(ParamsError, match="cannot be read"):
            load_estimator(path)


def test_numbers_out_of_range_are_refused(tmp_path):
    path = tmp_path / "state.json"
    save_estimator(Kalman(), path)
    content = json.loads(path.read_text())
    content["state"]["levels"]["summary"]["variance"] = -1.0
    path.write_text(json.dumps(content))
    with pytest.raises(ParamsError, match=r"state.levels.summary.variance: .* greater than 0"):
        load_estimator(path)


@pytest.mark.parametrize("bad", [1e6, -1e6, 1e300, 0, 10**30], ids=repr)
def test_a_number_that_is_absurd_is_refused_or_can_be_used(saved, bad, tmp_path):
    """Every number of every file in turn."""
    path, load, refused = tmp_path / "state.json", lab_load("abrupt", seed=2, requests=40), 0
    for place in places(json.loads(saved)):
        content = json.loads(saved)
        value = content
        for name in place:
            value = value[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        put(content, place, bad)
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


def test_a_state_that_cannot_be_read_back_is_never_written(tmp_path):
    path = tmp_path / "state.json"
    kalman = Kalman()
    save_estimator(kalman, path)
    before = path.read_text()
    kalman.state_.levels["summary"].level = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_estimator(kalman, path)
    with pytest.raises(ValueError, match="object is none of the estimators"):
        save_estimator(object(), path)
    assert path.read_text() == before


def test_a_state_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("os.fsync", lambda number: calls.append("fsync"))
    monkeypatch.setattr("os.replace", lambda source, target: calls.append("replace"))
    save_estimator(Kalman(), tmp_path / "state.json")
    assert calls == ["fsync", "replace"]
