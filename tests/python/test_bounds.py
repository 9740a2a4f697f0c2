"""Bounds and formulas: the paper's numbers, NumPy's entropy, and what is really stored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tersenet
from tersenet import bounds


def test_bounds_are_the_papers_formulas():
    shape, k, b = (4096, 512), 32, 32
    entries = 4096 * 512
    assert bounds.hac(shape, k) == pytest.approx((1 + 5) / b + 6 * k / entries)
    stored = 0.1 * entries + 4096 + 1
    expected = 0.1 * 6 / b + 6 * k / entries + stored / entries
    assert bounds.shac(shape, 0.1, k) == pytest.approx(expected)


def test_formulas_are_what_was_worked_out_by_hand():
    assert bounds.csr_bits((10, 300), 7) == 7 * 48 + 160
    assert bounds.index_map_bits((10, 300), 256) == 3000 * 16 + 32 * 256
    counts = {"values": 3, "cols": 256, "groups": 6, "group_starts": 7, "row_starts": 11}
    assert bounds.cser_bits((10, 300), **counts) == 96 + 4096 + 48 + 112 + 88
    assert bounds.hac_bits(33, 2, 1) == 64 + 104
    assert bounds.shac_bits((10, 300), 7, 0, 1, 0) == 56 + 272


@given(st.lists(st.integers(0, 10**6), max_size=50))
def test_entropy_is_numpys(histogram):
    p = np.array([count for count in histogram if count], float)
    p /= p.sum() or 1
    assert bounds.entropy(histogram) == pytest.approx(float(-(p * np.log2(p)).sum()), abs=1e-9)
    assert bounds.entropy_bound(histogram) == bounds.entropy(histogram) + 1


def test_the_entropy_of_a_matrix_counts_positions_and_symbols():
    weights = np.float32([[0, 1, 0, 0], [0, 1, -2, 0]])
    flags = -(3 / 8 * np.log2(3 / 8) + 5 / 8 * np.log2(5 / 8))
    symbols = -(2 / 3 * np.log2(2 / 3) + 1 / 3 * np.log2(1 / 3))
    assert bounds.entropy_bits(weights) == pytest.approx(8 * flags + 3 * symbols)
    assert bounds.entropy_bits(np.zeros((3, 3), np.float32)) == 0


@given(st.floats(0.05, 1), st.integers(1, 200), st.integers(0, 10))
def test_the_published_arrangements_stay_under_their_bounds(density, k, seed):
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, k + 1, (64, 300)).astype(np.float32)
    weights[rng.random(weights.shape) >= density] = 0
    for layout in ("hac", "shac"):
        matrix = tersenet.CompressedMatrix.compress(weights, layout, columns="raw")
        sections = matrix.sections()
        named = matrix.nbytes - sections["header"] - sections["row_ends"]
        distinct = len(matrix.codebook)
        has_zero = matrix.nnz < weights.size
        bound = (
            bounds.hac(matrix.shape, distinct + has_zero)
            if layout == "hac"
            else bounds.shac(matrix.shape, matrix.nnz / weights.size, distinct)
        )
        # The bound is stated without the tables of word-sized arrays beyond six words a value.
        slack = 4 * 64 / (4 * weights.size)
        assert named / (4 * weights.size) <= bound + slack


@pytest.mark.parametrize(
    "call",
    [
        lambda: bounds.hac((0, 5), 3),
        lambda: bounds.shac((5, 5), 1.5, 3),
        lambda: bounds.hac_bits(10, 3, 64),
    ],
)
def test_what_has_no_bound_is_an_error(call):
    with pytest.raises(ValueError, match="bounds:"):
        call()
