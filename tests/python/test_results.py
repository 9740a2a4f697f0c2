"""Results of sweeps: fronts and choices by their definitions, and a file that loses nothing."""

import os
import resource
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersenet import FormatError
from tersenet.sweeping import Layer, Results, Trial
from tersenet.sweeping.results import Dense, Origin
from tersenet.sweeping.storing import ResultsFile

ORIGIN = Origin(model="m", data="d", space="{}", version="1")
DENSE = Dense(accuracy=0.875, nbytes=4000)


def trial(number, nbytes=100, accuracy=0.5, *, layers=(), **others):
    return Trial(
        number, {"*.k": number, "goal": "size"}, nbytes, accuracy, 1.5, 0.25, 2.0, layers, **others
    )


def results(trials):
    return Results(trials, DENSE, ORIGIN)


points = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 8)), max_size=40)


@given(points)
def test_the_front_is_what_nothing_dominates(points):
    trials = [
        trial(number, nbytes, accuracy / 8) for number, (nbytes, accuracy) in enumerate(points)
    ]
    front = results(trials).front()
    cost = np.array([p[0] for p in points], int)
    gain = np.array([p[1] for p in points], int)
    no_worse = (cost[None] <= cost[:, None]) & (gain[None] >= gain[:, None])
    better = (cost[None] < cost[:, None]) | (gain[None] > gain[:, None])
    expected = np.flatnonzero(~(no_worse & better).any(1))
    assert sorted(t.number for t in front) == expected.tolist()
    assert [t.nbytes for t in front] == sorted(cost[expected])


@given(points, st.integers(-9, 9))
def test_the_choice_is_the_smallest_within_the_drop(points, eighths):
    trials = [
        trial(number, nbytes, accuracy / 8) for number, (nbytes, accuracy) in enumerate(points)
    ]
    drops = [7 - accuracy for _, accuracy in points]
    good = [(p[0], -p[1], n) for n, p in enumerate(points) if drops[n] <= eighths]
    if good:
        assert results(trials).choose(max_drop=eighths / 8).number == min(good)[2]
    else:
        with pytest.raises(
            ValueError, match=r"expected at most .* under the dense model's 0\.8750"
        ):
            results(trials).choose(max_drop=eighths / 8)


def test_fronts_are_taken_by_cost_and_by_setting():
    rows = [replace(trial(n, 100 + n, n / 10), seconds=9.0 - n) for n in range(4)]
    assert [t.number for t in results(rows).front("nbytes")] == [0, 1, 2, 3]
    assert [t.number for t in results(rows).front("seconds")] == [3]
    found = results(rows).fronts("*.k")
    assert {value: [t.number for t in front] for value, front in found.items()} == {
        n: [n] for n in range(4)
    }
    with pytest.raises(ValueError, match="cost is 'bytes', expected one of nbytes, "):
        results(rows).front("bytes")
    with pytest.raises(
        ValueError, match=r"no trial has a setting 'k', expected one of \*\.k, goal"
    ):
        results(rows).fronts("k")
    with pytest.raises(ValueError, match="max_drop is nan, expected a finite number"):
        results(rows).choose(max_drop=float("nan"))
    with pytest.raises(ValueError, match="there is no trial, expected"):
        results([]).choose(max_drop=1)


def test_the_table_shows_the_settings_that_differ():
    rows = [
        Trial(n, {"*.k": k, "goal": "size", "training.lr": lr}, 1234, 0.98765, 1.5, 0.25, 2.0)
        for n, (k, lr) in enumerate([(8, 1e-5), (16, 1e-5), (16, 0.125)])
    ]
    header, _, first, *_, footer = str(results(rows)).splitlines()
    assert header.split()[:4] == ["trial", "*.k", "training.lr", "nbytes"]
    assert first.split() == ["0", "8", "1e-05", "1,234", "1.500", "25", "%", "0.9877", "2.000"]
    assert footer == "dense: 4,000 bytes, accuracy 0.8750"
    assert results(rows).to_dicts()[1]["settings"]["*.k"] == 16


floats = st.floats(allow_nan=False, allow_infinity=False)
reals = floats.map(lambda x: x + 0.0)  # SQLite has no -0.0
whole = st.integers(0, 2**63 - 1)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
layers = st.builds(
    Layer,
    name=words,
    kind=words,
    shape=st.lists(whole, max_size=4).map(tuple),
    density=reals,
    k=st.none() | whole,
    layout=words,
    coder=st.none() | words,
    nbytes=whole,
    bits_per_weight=reals,
    entropy_bits=st.none() | reals,
    reason=st.none() | words,
)
trials = st.builds(
    Trial,
    number=whole,
    settings=st.dictionaries(words, st.booleans() | whole | floats | words, min_size=1, max_size=4),
    nbytes=whole,
    accuracy=reals,
    bits_per_weight=reals,
    density=reals,
    seconds=reals,
    layers=st.lists(layers, max_size=3).map(tuple),
)


@given(st.lists(trials, max_size=4, unique_by=(lambda t: t.number, lambda t: repr(t.settings))))
@settings(max_examples=25)
def test_trials_come_back_to_the_bit(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a %?#.sqlite")
        with closing(ResultsFile(path, create=True)) as file:
            file.describe(ORIGIN, DENSE)
            for row in rows:
                assert file.add(row) == row
        found = Results.open(path)
        assert os.listdir(folder) == [path.name]
    expected = sorted(rows, key=lambda row: row.number)
    assert repr(list(found)) == repr(expected)  # tells 1 from True and 1.0, too
    assert [row.layers for row in found] == [row.layers for row in expected]
    assert [row.seconds for row in found] == [row.seconds for row in expected]
    assert (found.dense, found.origin) == (DENSE, ORIGIN)


def test_a_trial_is_there_once_whoever_finished_it(tmp_path):
    path = tmp_path / "r.sqlite"
    with (
        closing(ResultsFile(path, create=True)) as one,
        closing(ResultsFile(path, create=True)) as other,
    ):
        one.describe(ORIGIN, DENSE)
        first = trial(0, nbytes=7)
        assert one.add(first) == first
        assert other.get(first.settings) == first
        assert other.add(replace(first, nbytes=8)) == first
        moved = Trial(0, {"*.k": 5}, 9, 0.5, 1.5, 0.25, 2.0)
        assert other.add(moved) == replace(moved, number=1)
    assert [(t.number, t.nbytes) for t in Results.open(path)] == [(0, 7), (1, 9)]


def test_results_of_another_sweep_are_refused_by_what_differs(tmp_path):
    path = tmp_path / "r.sqlite"
    with closing(ResultsFile(path, create=True)) as file:
        assert file.begin(ORIGIN) is None
        file.describe(ORIGIN, DENSE)
        assert file.begin(ORIGIN) == DENSE
        for name, words in {
            "model": "another model",
            "data": "other data",
            "space": "another space",
            "version": "tersenet 1, not x",
        }.items():
            with pytest.raises(ValueError, match=f"r.sqlite has results of {words}, expected"):
                file.begin(replace(ORIGIN, **{name: "x"}))


def test_what_is_no_file_of_results_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.sqlite"):
        Results.open(tmp_path / "none.sqlite")
    text = tmp_path / "text"
    text.write_text("version https://git-lfs.github.com/spec/v1\n" * 200)
    with pytest.raises(FormatError, match="text: file is not a database, expected the results"):
        Results.open(text)
    with pytest.raises(FormatError, match="text: file is not a database"):
        ResultsFile(text, create=True)
    assert text.read_text().startswith("version https")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE trials (x)")
    connection.close()
    for create in (False, True):
        with pytest.raises(FormatError, match=r"other\.sqlite: no results of a sweep"):
            ResultsFile(other, create=create)
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match="empty: no results of a sweep"):
        Results.open(tmp_path / "empty")
    ResultsFile(tmp_path / "new", create=True).close()
    with pytest.raises(FormatError, match="new: no sweep has begun in it"):
        Results.open(tmp_path / "new")
    with pytest.raises(OSError, match=r"results cannot be opened: .*nowhere"):
        ResultsFile(tmp_path / "nowhere" / "r.sqlite", create=True)


def test_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "r.sqlite"
    ResultsFile(path, create=True).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(FormatError, match=r"results of version 2, expected 1 \(a newer tersenet"):
        Results.open(path)


@pytest.mark.parametrize("room", [0, 100, 5000, 20_000])
def test_a_full_disk_is_an_error_and_loses_no_finished_trial(tmp_path, room):
    path = tmp_path / "r.sqlite"
    weights = tuple(
        Layer(f"l{n}", "fc", (9, 9), 0.5, 3, "packed", "fixed", 9, 1.5, None) for n in range(9)
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(ResultsFile(path, create=True)) as file:
        file.describe(ORIGIN, DENSE)
        kept = [file.add(trial(n, layers=weights)) for n in range(5)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, before[1]))
        try:
            with pytest.raises(OSError, match=r"results.*r\.sqlite|r\.sqlite.*results"):
                for n in range(5, 500):
                    kept.append(file.add(trial(n, layers=weights)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(Results.open(path)) == kept
        kept.append(file.add(trial(900, layers=weights)))  # there is room again
    assert list(Results.open(path)) == kept
    assert [row.layers for row in Results.open(path)] == [weights] * len(kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE trials SET accuracy = 'much'", "trial 3: accuracy is 'much', expected float"),
        ("UPDATE trials SET seconds = 9e999", "trial 3: seconds is inf, expected float"),
        ("UPDATE trials SET nbytes = 1.5", "trial 3: nbytes is 1.5, expected int"),
        ("UPDATE trials SET settings = '[1]'", r"trial 3: settings is \[1\], expected dict"),
        ("UPDATE trials SET settings = '{'", "trial 3: settings: no JSON"),
        ("UPDATE trials SET settings = '{\"a\": [1]}'", r"trial 3: settings holds \{'a': \[1\]\}"),
        ("UPDATE layers SET k = 'many'", "trial 3: layer 0: k is 'many', expected int or none"),
        ("UPDATE layers SET shape = '[\"2\"]'", r"trial 3: layer 0: shape holds \('2',\)"),
        ("UPDATE layers SET name = x'00'", r"layer 0: name is b'\\x00', expected str"),
        ("DELETE FROM sweep WHERE name = 'dense_nbytes'", "the sweep: dense_nbytes is 'missing'"),
        ("UPDATE sweep SET value = 1 WHERE name = 'version'", "version is 1, expected str"),
    ],
)
def test_what_is_no_number_is_refused(tmp_path, change, message):
    layer = Layer("fc", "Linear", (2, 3), 0.5, 4, "coded", "tans", 9, 1.5, 1.25)
    path = tmp_path / "results.sqlite"
    with closing(ResultsFile(path, create=True)) as file:
        file.describe(ORIGIN, DENSE)
        file.add(trial(3, layers=(layer,)))
    assert len(Results.open(path)) == 1
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(change)
        connection.commit()
    with pytest.raises(FormatError, match=message):
        Results.open(path)
