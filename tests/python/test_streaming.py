"""Pruning arrays one at a time gives the masks of pruning them together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tersenet.pruning import magnitude_masks
from tersenet.pruning.streaming import global_cutoffs

VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, 3e38, np.inf, -np.inf]),
    st.floats(-3, 3, width=32),
)
ARRAYS = st.lists(hnp.arrays(np.float32, st.integers(0, 20), elements=VALUES), max_size=4)


def masks(arrays, sparsity):
    cutoffs = global_cutoffs(lambda: iter(arrays.items()), sparsity=sparsity)
    return {name: cutoffs[name].mask(array) for name, array in arrays.items()}


@settings(max_examples=300, deadline=None)
@given(ARRAYS, st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)))
def test_masks_are_those_of_all_arrays_together(arrays, sparsity):
    named = {str(i): array for i, array in enumerate(arrays)}
    expected = magnitude_masks(named, sparsity=sparsity, scope="global")
    found = masks(named, sparsity)
    for name in named:
        assert np.array_equal(found[name], expected[name])


def test_many_weights_of_several_shapes():
    rng = np.random.default_rng(0)
    named = {
        "a": rng.standard_normal((300, 200)).astype(np.float32),
        "b": rng.integers(-3, 4, (50, 7, 3)).astype(np.float32),
        "c": (rng.standard_normal((64, 64)) * 1e-3).astype(np.float32)[:, ::2],
    }
    for sparsity in (0.1, 0.5, 0.9, 0.99):
        found = masks(named, sparsity)
        expected = magnitude_masks(named, sparsity=sparsity, scope="global")
        assert all(np.array_equal(found[name], expected[name]) for name in named)


def test_nan_and_bad_sparsities_are_named():
    named = {"a": np.ones(3, np.float32), "b": np.float32([1, np.nan])}
    with pytest.raises(ValueError, match="b holds 1 NaN, first at flat position 1"):
        masks(named, 0.5)
    with pytest.raises(ValueError, match=r"sparsity is 1\.5"):
        masks({}, 1.5)
