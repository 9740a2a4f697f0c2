"""What the bench of the paper's networks claims, and what it leaves unclaimed."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from evaluation import Benchmark, Evaluation
from heads import widened
from hypothesis import given
from hypothesis import strategies as st
from vgg19_head import ImageHeads, with_mixtures

ERRORS = Benchmark(
    name="toy",
    title="Toy",
    metric="mse",
    is_error=True,
    weak=0.5,
    published={"dense": 0.3, "fc_occupancy": 0.1, "net_occupancy": 0.1},
    goal=0.05,
)
ACCURACIES = replace(ERRORS, metric="accuracy", is_error=False, weak=0.9)
rows = st.dictionaries(
    st.integers(0, 9),
    st.builds(
        lambda occupancy, validation: {"occupancy": occupancy, "validation": validation},
        st.floats(0, 0.1),
        st.floats(0, 1),
    ),
)


@given(rows, st.floats(0, 0.1))
def test_the_best_row_is_small_enough_and_none_of_those_does_better(rows, most):
    small = {key: row["validation"] for key, row in rows.items() if row["occupancy"] <= most}
    for benchmark, best in ((ERRORS, min), (ACCURACIES, max)):
        found = benchmark.best(rows, most)
        assert (found is None) == (not small)
        if small:
            assert small[found] == best(small.values())


@given(st.integers(1, 10_000), st.sampled_from([1, 20, 100, 128, 1000]))
def test_as_many_right_are_no_worse_however_they_were_averaged(right, size):
    answers = torch.arange(10_000) < right
    whole = float(answers.float().mean())
    parts = [float(part.float().mean()) * len(part) for part in answers.split(size)]
    in_parts = sum(parts) / len(answers)
    assert not ACCURACIES.is_worse(in_parts, whole)
    assert not ACCURACIES.is_worse(whole, in_parts)
    assert ACCURACIES.is_worse(in_parts - 1e-4, whole)
    assert ERRORS.is_worse(in_parts + 1e-4, whole)


ON_CPU = SimpleNamespace(cache=SimpleNamespace(device=torch.device("cpu")))


def evaluation(benchmark, dense, head, whole):
    """An evaluation whose rows have these values of the metric."""
    times = {
        f"{what}, batch {batch}": {"median_ms": ms}
        for batch in (1, 32)
        for what, ms in (("torch", 3.0), ("Network", 2.0))
    }
    of = benchmark.metric
    finished = {
        "dense": {of: dense, "validation": dense, "occupancy": 1.0},
        "units-0.1-16": {of: head, "validation": dense, "occupancy": 0.02},
    }
    heads = SimpleNamespace(
        finished=finished,
        learnt_rows=lambda: [(0.1, 16), (0.2, 16)],
        cache=SimpleNamespace(
            rows=lambda name, work: [{"what": what, "times": times} for what in ("head", "whole")]
        ),
    )
    wholes = SimpleNamespace(
        finished={(0.1, 0.5): {of: whole, "validation": whole, "occupancy": 0.03}}
    )
    return Evaluation(benchmark, torch.nn.Linear(1, 1), [0.0, 0.0], heads, wholes)


@pytest.mark.parametrize(
    ("benchmark", "dense", "same", "better", "worse", "weak"),
    [(ERRORS, 0.25, 0.25, 0.2, 0.26, 0.51), (ACCURACIES, 0.95, 0.95, 0.96, 0.94, 0.89)],
)
def test_only_what_the_test_examples_bear_out_is_claimed(
    benchmark, dense, same, better, worse, weak
):
    found = evaluation(benchmark, dense, better, worse).figures()
    assert (found["fc_occupancy"], found["net_occupancy"]) == (0.02, None)
    assert (found["metric_compressed"], found["net_metric"]) == (better, worse)
    assert found["speedup_batch1"] == found["fc_speedup_batch32"] == 1.5
    found = evaluation(benchmark, dense, worse, same).figures()
    assert (found["fc_occupancy"], found["net_occupancy"]) == (None, 0.03)
    found = evaluation(benchmark, weak, better, better).figures()
    assert found["baseline_weak"]
    assert found["fc_occupancy"] is found["net_occupancy"] is None


def test_the_layers_of_a_vgg19_made_narrower_and_wide_again_compute_the_same():
    narrow = ImageHeads.layers(ON_CPU, (5, 7)).eval()
    with torch.no_grad():
        narrow[1].weight[narrow[1].weight.abs() < 0.02] = 0
    wide = widened(narrow, ImageHeads.layers(ON_CPU)).eval()
    assert [wide[place].out_features for place in (1, 4, 7)] == [4096, 4096, 10]
    x = torch.randn(4, 512)
    torch.testing.assert_close(wide(x), narrow(x))


def test_mixtures_are_answered_as_the_dense_layers_do():
    torch.manual_seed(0)
    fc = ImageHeads.layers(ON_CPU, (8, 8)).train()
    read, labels = torch.randn(40, 512), torch.randint(10, (40,))
    features, targets = (
        torch.cat(parts) for parts in zip(*with_mixtures(fc, read, labels), strict=True)
    )
    assert fc.training
    fc.eval()
    with torch.no_grad():
        torch.testing.assert_close(targets[:, :10], fc(features))
    is_plain = (features[:, None] == read).all(2)
    for mine, label in zip(is_plain.T, labels, strict=True):
        assert label in targets[mine, 10]
    mixed = targets[~is_plain.any(1)]
    assert len(mixed) >= 30
    assert (mixed[:, 10] == mixed[:, :10].argmax(1)).all()
