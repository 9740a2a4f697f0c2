"""Plans: matching, overriding, and the way to TOML and back."""

import copy
import pickle
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersenet.plan import Plan, Rule

LAYERS = [("features.0", "conv"), ("fc1", "fc"), ("fc2", "fc"), ("emb", "embedding")]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
words = st.none() | texts.filter(bool)
floats = st.none() | st.floats(0, 1e300)


@st.composite
def rules(draw):
    prunes = draw(st.sampled_from(["sparsity", "threshold", None]))
    amount = st.floats(0, 1, exclude_max=True) if prunes == "sparsity" else st.floats(0, 1e300)
    return Rule(
        pruner=draw(words),
        **({prunes: draw(amount)} if prunes else {}),
        quantizer=draw(words),
        k=draw(st.none() | st.integers(1, 65_536)),
        lam=draw(floats),
        layout=draw(words),
        coder=draw(words),
        skip=draw(st.none() | st.booleans()),
    )


plans = st.builds(
    Plan,
    st.dictionaries(texts, rules(), max_size=4),
    seed=st.integers(0, 2**63 - 1),
    pruning_scope=st.sampled_from(["layer", "global"]),
    codebook_scope=st.sampled_from(["layer", "kind"]),
    goal=st.sampled_from([None, "size", "speed"]),
)


@given(plan=plans)
@settings(max_examples=150, deadline=None)
def test_a_plan_comes_back_from_toml_equal_and_in_order(plan):
    pytest.importorskip("tomli_w")
    again = Plan.from_toml(plan.to_toml())
    assert again == plan and hash(again) == hash(plan)
    assert list(again.layers) == list(plan.layers)


@given(plan=plans)
@settings(max_examples=30, deadline=None)
def test_a_plan_survives_pickling_and_copying(plan):
    assert pickle.loads(pickle.dumps(plan)) == plan == copy.deepcopy(plan)


def test_the_order_of_rules_is_part_of_a_plan():
    a, b = Rule(k=1), Rule(k=2)
    assert Plan({"x": a, "y": b}) != Plan({"y": b, "x": a})


def test_later_rules_override_earlier_ones_field_by_field():
    plan = Plan(
        {
            "*": Rule(sparsity=0.9, quantizer="cws", k=32),
            "fc*": Rule(k=16, threshold=0.1),
            "fc2": Rule(skip=True),
        }
    )
    resolved = plan.resolve(LAYERS)
    assert list(resolved) == ["features.0", "fc1"]
    assert resolved["features.0"] == Rule(sparsity=0.9, quantizer="cws", k=32)
    assert resolved["fc1"] == Rule(threshold=0.1, quantizer="cws", k=16)


def test_a_skipped_layer_can_be_taken_back():
    plan = Plan({"*": Rule(sparsity=0.5, skip=True), "fc1": Rule(skip=False)})
    assert list(plan.resolve(LAYERS)) == ["fc1"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["features.0", "fc1", "fc2"]),
        ("fc:*", ["fc1", "fc2"]),
        ("fc:*2", ["fc2"]),
        ("conv:*", ["features.0"]),
        ("embedding:*", ["emb"]),
        ("e*", ["emb"]),
        ("fc[12]", ["fc1", "fc2"]),
        ("features.*", ["features.0"]),
    ],
)
def test_a_pattern_reaches_names_kinds_and_embeddings_only_when_meant(pattern, expected):
    assert list(Plan.of(pattern, sparsity=0.5).resolve(LAYERS)) == expected


def test_a_model_that_is_one_layer_has_the_empty_name():
    assert list(Plan.of(sparsity=0.5).resolve([("", "fc")])) == [""]


def test_a_pattern_that_matches_nothing_is_an_error_with_near_names():
    with pytest.raises(ValueError, match=r"pattern 'fc_1' matches no layer.*nearest names are fc1"):
        Plan.of("fc_1", sparsity=0.5).resolve(LAYERS)
    with pytest.raises(ValueError, match=r"pattern 'cnv:\*' .*conv:\*"):
        Plan.of("cnv:*", sparsity=0.5).resolve(LAYERS)
    with pytest.raises(ValueError, match="wildcards alone do not reach embeddings"):
        Plan.of("*", sparsity=0.5).resolve(LAYERS[3:])


@pytest.mark.parametrize(
    "fields",
    [{"pruner": "magnitude"}, {"k": 4}, {"lam": 0.1}, {"quantizer": "cws"}],
)
def test_a_rule_that_lacks_its_partner_is_an_error_when_resolved(fields):
    with pytest.raises(ValueError, match=r"plan: layer 'fc1' gets .* alone, expected"):
        Plan.of("fc1", **fields).resolve(LAYERS)


@pytest.mark.parametrize(
    "fields",
    [
        {"sparsity": 1.0},
        {"sparsity": -0.1},
        {"sparsity": float("nan")},
        {"sparsity": "0.9"},
        {"threshold": -1},
        {"threshold": float("inf")},
        {"k": 0},
        {"k": 65_537},
        {"k": True},
        {"k": 8.0},
        {"lam": -1.0},
        {"quantizer": ""},
        {"quantizer": 3},
        {"sparsity": 0.5, "threshold": 0.5},
    ],
)
def test_a_field_out_of_range_is_an_error_that_names_it(fields):
    with pytest.raises(ValueError, match=f"plan: .*{next(iter(fields))}.* expected "):
        Plan.of(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": -1},
        {"seed": 1.5},
        {"goal": "small"},
        {"pruning_scope": "all"},
        {"codebook_scope": "global"},
    ],
)
def test_a_wrong_setting_of_the_plan_is_an_error(fields):
    with pytest.raises(ValueError, match=f"plan: {next(iter(fields))} is .*, expected"):
        Plan({}, **fields)
    with pytest.raises(ValueError, match="plan: layers "):
        Plan({"*": {"k": 3}})
    with pytest.raises(ValueError, match="plan: layers is list"):
        Plan([Rule()])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", r"unknown key 'sed' in the top level, expected layers, seed, .*mean seed\?"),
        ('[layers."*"]\nsparsty = 0.5', r"unknown key 'sparsty' in \[layers.'\*'\].*mean sparsity"),
        ("[layers.a]\nk = '3'", r"k is '3', expected an integer .*\(\[layers.'a'\]\)"),
        ("layers = 3", "layers is 3, expected a table"),
        ("[layers]\na = 3", r"\[layers.'a'\] is 3, expected a table"),
        ("k = = 3", "the text is no TOML: .*line 1"),
    ],
)
def test_bad_toml_is_an_error_that_says_where(text, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_toml(text)


def test_a_plan_is_loaded_from_a_file_and_errors_name_it(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text('goal = "size"\n[layers."*"]\nsparsity = 0\nquantizer = "uq"\nk = 8\n')
    assert Plan.load(path) == Plan.of(sparsity=0.0, quantizer="uq", k=8, goal="size")
    path.write_text("sed = 1")
    with pytest.raises(ValueError, match=r"plan\.toml\)"):
        Plan.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"plan\.toml\)"):
        Plan.load(path)
    with pytest.raises(FileNotFoundError):
        Plan.load(tmp_path / "none.toml")


def test_without_tomli_w_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tomli_w", None)
    with pytest.raises(ImportError, match="pip install tomli-w"):
        Plan().to_toml()
