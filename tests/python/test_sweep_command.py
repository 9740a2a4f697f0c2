"""`tersenet sweep`: from a file of a space to the front, and what it says of a bad one."""

import json
import sys

import pytest
import torch
from digits import make_data, make_model
from test_cli import call

from tersenet import sweep
from tersenet.console import progress
from tersenet.sweeping import Results, Space

pytest.importorskip("typer")

SPACE = """
[model]
function = "swept:make_model"
[data]
function = "swept:make_data"
[layers."fc:*"]
sparsity = [0.5, 0.8, 0.95]
quantizer = "cws"
k = [4, 8]
"""

MODULE = """
import torch

def make_model():
    return torch.load("model.pt", weights_only=False)

def make_data():
    return torch.load("data.pt", weights_only=False)

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "swept", raising=False)
    torch.save(make_model(), "model.pt")
    torch.save(make_data(), "data.pt")
    (tmp_path / "swept.py").write_text(MODULE)
    (tmp_path / "space.toml").write_text(SPACE)
    return tmp_path


def test_the_front_is_shown_and_kept_in_a_file(folder):
    path = list(sys.path)
    status, shown, err = call("sweep", "space.toml", "--workers", 0, "--max-drop", 1)
    assert (status, err) == (0, "")
    assert sys.path == path
    found = Results.open("space.sqlite")
    assert list(found) == list(sweep(make_model, make_data(), Space.from_toml(SPACE), workers=0))
    front = found.front()
    lines = shown.splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(front)]] == [str(t.number) for t in front]
    assert all(f"{t.nbytes:,}" in shown for t in front)
    assert f"6 trials, {len(front)} on the front" in shown
    best = found.choose(max_drop=1)
    assert lines[-1].startswith(f"trial {best.number}, {best.nbytes:,} bytes, ")
    status, shown, err = call(
        "sweep", "space.toml", "--results", "space.sqlite", "--workers", 0, "--all", "--json"
    )
    assert (status, err) == (0, "")
    answer = json.loads(shown)
    assert [row["nbytes"] for row in answer["trials"]] == [t.nbytes for t in found]
    assert answer["dense"] == vars(found.dense)
    assert answer["chosen"] is None
    assert {layer["name"] for layer in answer["trials"][0]["layers"]} == {"0", "4", "6"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SPACE.replace("[model]", "[mdel]"), r"unknown key 'mdel' in the top level"),
        (SPACE.partition("[layers")[0], "layers is empty, expected a table"),
        (SPACE.replace('[model]\nfunction = "swept:make_model"', ""), "no [model], expected func"),
        (SPACE.replace("swept:make_model", "nowhere:make"), "nowhere:make: no module nowhere"),
        (SPACE.replace("swept:make_data", "swept:dta"), "swept has no attribute dta"),
        (
            SPACE.replace("swept:make_model", "swept:make_data"),
            "model_fn gave tuple, expected a mo",
        ),
        (SPACE.replace("fc:*", "fc"), "pattern 'fc' matches no layer"),
        (SPACE.replace("cws", 'ecsq"\nlam = 0.1\ncoder = "x'), "coder in [layers.'fc:*'] is 'x'"),
    ],
)
def test_a_bad_space_is_one_line(folder, text, message):
    (folder / "space.toml").write_text(text)
    status, _, err = call("sweep", "space.toml", "--workers", 0)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1 and err.startswith("tersenet: ")


def test_an_error_of_a_trial_says_which_in_one_line(folder):
    kinds = SPACE.replace("[layers", 'codebook_scope = "kind"\n[layers', 1)
    text = kinds.replace('codebook_scope = "kind"\n', "", 1)
    text = 'codebook_scope = "kind"\n' + text + "[layers.6]\nk = 3\n"
    (folder / "space.toml").write_text(text)
    status, _, err = call("sweep", "space.toml", "--workers", 0)
    assert status == 2
    assert "found k 4 and 3, expected the same (trial 0: fc:*.sparsity = 0.5, " in err
    assert err.count("\n") == 1


def test_in_a_file_progress_is_a_line_now_and_then_with_the_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("tersenet.console.time.monotonic", lambda: now[0])
    with progress() as advance:
        for done in range(11):  # 4 were done before; the others take 20 s each
            advance("trials", 4 + done, 14)
            now[0] += 20
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"tersenet: trials: {done} of 14, about {left} left"
        for done, left in [(6, "0:02:40"), (8, "0:02:00"), (10, "0:01:20"), (12, "0:00:40")]
    ] + ["tersenet: trials: 14 of 14, about 0:00:00 left"]
