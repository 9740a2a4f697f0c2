"""Nearest values on a grid, against a binary search."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tersenet.quantization.nearest import nearest

floats = st.floats(width=32)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    arrays.arrays(np.float32, st.integers(0, 300), elements=floats),
    st.lists(finite, min_size=0, max_size=40),
)
@example(np.zeros(0, np.float32), [float(np.finfo(np.float32).max)])
def test_symbols_are_those_of_a_binary_search(weights, middles):
    middles = np.sort(np.array(middles, np.float32))
    with np.errstate(over="ignore"):  # the next one of the largest number is infinite
        above = np.nextafter(middles, np.float32(np.inf))
    weights = np.concatenate([weights, middles, above])
    found = nearest(torch.from_numpy(weights), torch.from_numpy(middles))
    assert found.dtype == torch.int32
    assert np.array_equal(found.numpy(), np.searchsorted(middles, weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [2, 3, 16, 256, 5000])
@pytest.mark.parametrize("power", [1, 9])
def test_large_weights_take_their_parts_of_values_that_crowd(dtype, k, power):
    generator = torch.Generator().manual_seed(k)
    values = torch.randn(k, generator=generator, dtype=dtype).pow(power).sort().values
    middles = (values[1:] + values[:-1]) / 2
    weights = torch.randn(3, 50_000, generator=generator, dtype=dtype).pow(power)
    found = nearest(weights, middles)
    assert torch.equal(found, torch.bucketize(weights, middles, out_int32=True))
    assert torch.equal(nearest(weights.T, middles), found.T)


@pytest.mark.parametrize("width", [1e-45, 1e-40, 1e-36])
def test_middles_that_hardly_differ_are_told_apart(width):
    middles = torch.tensor([0.0, width])
    weights = torch.tensor([-1.0, 0.0, width / 2, width, 1.0])
    assert torch.equal(nearest(weights, middles), torch.bucketize(weights, middles, out_int32=True))
