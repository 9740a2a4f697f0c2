"""Spaces: what a table says is tried, in which order, and what is said of a bad one."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersenet.plan import Plan, Rule
from tersenet.sweeping import Range, Search, Space
from tersenet.sweeping.space import completed, key_of, plan_of

TEXT = """
seed = [0, 7]
codebook_scope = ["layer", "kind"]
[layers."fc:*"]
sparsity = [0.8, 0.95]
quantizer = ["cws", "uq"]
k = 16
[layers."conv:features.*"]
sparsity = [0, 0.5, 0.7]
layout = "packed"
[training]
after_pruning = 2
lr = [1e-3, 1]
[model]
function = "networks:make"
"""

fields = {
    "sparsity": st.sampled_from([0.0, 0.5, 0.75, 0.9]),
    "quantizer": st.sampled_from(["cws", "pws", "uq", "ecsq"]),
    "k": st.integers(1, 65_536),
    "lam": st.floats(0, 9),
    "layout": st.sampled_from(["auto", "packed", "hac"]),
    "skip": st.booleans(),
}
others = {
    "seed": st.integers(0, 2**63 - 1),
    "pruning_scope": st.sampled_from(["layer", "global"]),
    "codebook_scope": st.sampled_from(["layer", "kind"]),
    "goal": st.sampled_from(["size", "speed"]),
}


def listed(values):
    return st.lists(values, min_size=1, max_size=3, unique=True) | values


def tables(known, least=0):
    choices = {name: listed(values) for name, values in known.items()}
    chosen = st.lists(st.sampled_from(list(known)), min_size=least, max_size=3, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({n: choices[n] for n in names}))


patterns = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@given(
    layers=st.dictionaries(patterns, tables(fields, 1), min_size=1, max_size=2), top=tables(others)
)
def test_the_grid_is_the_product_in_the_order_of_the_fields(layers, top):
    space = Space.from_dict({"layers": layers, **top})
    lists = {(p, n): v for p, entry in layers.items() for n, v in entry.items()}
    order = ("seed", "pruning_scope", "codebook_scope", "goal")
    lists |= {(None, n): top[n] for n in order if n in top}
    values = [v if isinstance(v, list) else [v] for v in lists.values()]
    expected = [dict(zip(lists, each, strict=True)) for each in itertools.product(*values)]
    found = list(space.grid())
    assert len(found) == len(expected)
    for settings, wanted in zip(found, expected, strict=True):
        named = {n if p is None else f"{p}.{n}": value for (p, n), value in wanted.items()}
        assert {name: settings[name] for name in named} == named
        plan = plan_of(settings)
        rules = {p: Rule(**{n: v for (q, n), v in wanted.items() if q == p}) for p in layers}
        assert plan == Plan(rules, **{"goal": "size"} | {n: wanted[None, n] for n in top})
    assert len({key_of(settings) for settings in found}) == len(found)


def test_toml_is_read_to_every_field_and_defaults():
    space = Space.from_toml(TEXT)
    grid = list(space.grid())
    assert len(grid) == 2 * 2 * 3 * 2 * 2 * 2
    assert grid[0] == {
        "fc:*.sparsity": 0.8,
        "fc:*.quantizer": "cws",
        "fc:*.k": 16,
        "conv:features.*.sparsity": 0.0,
        "conv:features.*.layout": "packed",
        "seed": 0,
        "pruning_scope": "layer",
        "codebook_scope": "layer",
        "goal": "size",
        "training.after_pruning": 2,
        "training.after_quantizing": 0,
        "training.lr": 1e-3,
    }
    assert grid[1] == grid[0] | {"training.lr": 1.0}
    assert (space.model, space.data, space.search) == ("networks:make", None, None)
    assert space.trains()
    assert plan_of(grid[0]) == Plan(
        {
            "fc:*": Rule(sparsity=0.8, quantizer="cws", k=16),
            "conv:features.*": Rule(sparsity=0, layout="packed"),
        },
        goal="size",
    )


def test_a_learning_rate_that_nothing_trains_with_makes_no_trials():
    training = {"after_quantizing": [0, 3], "lr": [0.1, 0.01]}
    space = Space.from_dict({"layers": {"*": {"sparsity": 0.5}}, "training": training})
    found = [(s["training.after_quantizing"], s.get("training.lr")) for s in space.grid()]
    assert found == [(0, None), (3, 0.1), (3, 0.01)]
    assert not Space.from_dict({"layers": {"*": {"sparsity": 0.5}}}).trains()


def test_a_search_takes_ranges_and_its_number_of_trials_is_no_part_of_the_space():
    table = {
        "layers": {
            "fc:*": {
                "sparsity": {"low": 0.5, "high": 0.9},
                "k": {"low": 4, "high": 64, "log": True},
            }
        },
        "search": {"trials": 9, "sampler": "random"},
    }
    space = Space.from_dict(table)
    assert space.choices["fc:*.sparsity"] == Range(0.5, 0.9)
    assert space.choices["fc:*.k"] == Range(4, 64, log=True)
    assert space.search == Search(9, sampler="random")
    with pytest.raises(ValueError, match=r"fc:\*.sparsity is a range, expected a list"):
        list(space.grid())
    more = Space.from_dict(table | {"search": {"trials": 10, "sampler": "random"}})
    other = Space.from_dict(table | {"search": {"trials": 9, "sampler": "tpe"}})
    assert more.to_json() == space.to_json() != other.to_json()
    assert json.loads(space.to_json())["choices"]["fc:*.k"]["high"] == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k = = 3", "the text is no TOML: .*line 1"),
        ("", "layers is empty, expected a table for at least one pattern"),
        ("layers = 3", "layers in the top level is 3, expected a table"),
        ("layer = 3", r"unknown key 'layer' in the top level, .*mean layers\?"),
        ("[layers]\nfc = 3", r"\[layers.'fc'\] is 3, expected a table"),
        ("[layers.fc]\nsparsty = 1", r"unknown key 'sparsty' in \[layers.'fc'\].*mean sparsity"),
        ("[layers.fc]\nsparsity = [0.5, 1.5]", r"sparsity is 1.5, expected .*\(\[layers.'fc'\]\)"),
        ("[layers.fc]\nk = [8, '9']", r"k is '9', expected an integer .*\(\[layers.'fc'\]\)"),
        ("[layers.fc]\nk = []", r"k in \[layers.'fc'\] is \[\], expected a value, or a list"),
        ("[layers.fc]\nk = [8, 8]", r"k in \[layers.'fc'\] is \[8, 8\], expected each value once"),
        (
            "[layers.fc]\nquantizer = 'kmeans'",
            r"quantizer in .* 'kmeans', expected one of cws, pws",
        ),
        ("[layers.fc]\nlayout = ['hca']", "layout in .* is 'hca', expected one of auto, .*hac"),
        ("[layers.fc]\ncoder = 1", "coder in .* is 1, expected one of auto, "),
        ("[layers.fc]\npruner = 'random'", "pruner in .* is 'random', expected one of magnitude"),
        ("[layers.fc]\nsparsity = 0\nthreshold = 0", "has sparsity and threshold, expected one"),
        (
            "[layers.fc]\nsparsity = {low = 0.1, high = 0.9}",
            "fc.sparsity is a range, expected a list",
        ),
        ("[layers.fc]\nk = {low = 4}", r"\[layers.'fc'\] k has no high, expected low and high"),
        ("[layers.fc]\nk = {low = 4, hihg = 8}", "unknown key 'hihg' in .* k,.*mean high"),
        ("[layers.fc]\nk = {low = 9, high = 8}", "low in .* k is 9, expected at most high, 8"),
        ("[layers.fc]\nk = {low = 0, high = 8}", "k is 0, expected an integer in"),
        ("[layers.fc]\nk = {low = 1, high = 8, step = 0.5}", "step .* is 0.5, expected an integer"),
        ("[layers.fc]\nk = {low = 1, high = 8, step = 1, log = true}", "log .* without a step"),
        (
            "[layers.fc]\nquantizer = {low = 1, high = 2}",
            "quantizer .* expected a value, or a list",
        ),
        ("seed = -1\n[layers.fc]\nk = 3", r"seed is -1, expected an integer in .*the top level"),
        ("goal = 'small'\n[layers.fc]\nk = 3", "goal in the top level is 'small', expected 'size'"),
        (
            "codebook_scope = ['all']\n[layers.fc]\nk = 3",
            "codebook_scope is 'all', expected 'layer'",
        ),
        (
            "[layers.fc]\nk = 3\n[training]\nlr = 0",
            r"lr in \[training\] is 0, expected a number above",
        ),
        (
            "[layers.fc]\nk = 3\n[training]\nafter_pruning = 1.5",
            "is 1.5, expected a number of epochs",
        ),
        ("[layers.fc]\nk = 3\n[training]\nepochs = 1", r"unknown key 'epochs' in \[training\]"),
        (
            "[layers.fc]\nk = 3\n[search]\nseed = 1",
            r"\[search\] has no trials, expected their number",
        ),
        (
            "[layers.fc]\nk = 3\n[search]\ntrials = 0",
            r"trials in \[search\] is 0, expected an integer",
        ),
        (
            "[layers.fc]\nk = 3\n[search]\ntrials = 1\nsampler = 'x'",
            "'x', expected one of tpe, nsga",
        ),
        (
            "[layers.fc]\nk = 3\n[model]\nfunction = 'make'",
            r"function in \[model\] is 'make', expect",
        ),
        (
            "[layers.fc]\nk = 3\n[data]\nfile = 'make'",
            r"unknown key 'file' in \[data\], expected func",
        ),
    ],
)
def test_a_bad_space_is_one_error_that_names_the_key(text, message, tmp_path):
    with pytest.raises(ValueError, match=f"^space: .*{message}"):
        Space.from_toml(text)
    path = tmp_path / "space.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"space\.toml\)$"):
        Space.load(path)


def test_settings_are_completed_once():
    settings = completed({"*.k": 4, "goal": "speed"})
    assert completed(settings) == settings
    assert settings["goal"] == "speed"
