"""CompressedMatrix in NumPy: every pair of layout and coder, against numpy and scipy."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from tersenet import CODERS, LAYOUTS, PAIRS, Codebook, CompressedMatrix
from tersenet.errors import FormatError

settings.register_profile("tersenet", deadline=None, max_examples=60)
settings.load_profile("tersenet")

SPECIAL = np.array(
    [0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 1, 0x807FFFFF, 0x3F800000],
    np.uint32,
).view(np.float32)


@st.composite
def matrices(draw: st.DrawFn, finite: bool = False) -> np.ndarray:
    """Few or many distinct values, any density, with infinities and NaN unless `finite`."""
    shape = draw(st.sampled_from([0, 1, 2, 5, 7, 31, 64, 67])), draw(st.integers(0, 90))
    k = draw(st.sampled_from([1, 2, 3, 17, 256, 257, 5000]))
    density = draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    values = rng.standard_normal(k).astype(np.float32)
    if not finite and draw(st.booleans()):
        values[: len(SPECIAL)] = SPECIAL[:k]
    dense = values[rng.integers(0, k, shape)]
    if draw(st.booleans()) and shape[0] > 1:
        dense[shape[0] // 2 :] = dense[: shape[0] - shape[0] // 2]  # rows that repeat
    return np.where(rng.random(shape) < density, dense, np.float32(0))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def bound(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    n = w.shape[1]
    total = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T
    return (n + 2) * 2.0**-24 * total + n * 2.0**-149


pairs = st.sampled_from(PAIRS)


def test_every_layout_and_coder_is_in_a_pair():
    assert {layout for layout, _ in PAIRS} == set(LAYOUTS)
    assert {coder for _, coder in PAIRS} == set(CODERS)


@given(matrices(), pairs)
def test_compression_is_lossless_to_the_bit(w: np.ndarray, pair: tuple[str, str]):
    m = CompressedMatrix.compress(w, *pair)
    assert (m.layout, m.coder) == pair
    assert m.shape == w.shape
    assert same_bits(m.decompress(), w)
    assert same_bits(m.decompress(threads=3), w)
    kept = w.view(np.uint32)[w.view(np.uint32) != 0]
    assert m.nnz == kept.size
    assert sorted(m.codebook.view(np.uint32)) == sorted(np.unique(kept))


@given(matrices(), pairs)
def test_bytes_are_counted_in_full(w: np.ndarray, pair: tuple[str, str]):
    m = CompressedMatrix.compress(w, *pair)
    assert sum(m.sections().values()) == m.nbytes
    assert m.nbytes <= len(m.to_bytes())
    if w.size:
        assert m.bits_per_weight == pytest.approx(8 * m.nbytes / w.size)
        assert m.occupancy == pytest.approx(m.nbytes / w.nbytes)


@given(matrices(finite=True), pairs, st.sampled_from([0, 1, 2, 7, 8, 9, 33]))
def test_products_are_within_the_bound_of_float64(w, pair, batch):
    m = CompressedMatrix.compress(w, *pair)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, w.shape[1])).astype(np.float32)
    y = m.matmul(x)
    assert (y.shape, y.dtype) == ((batch, w.shape[0]), np.float32)
    exact = (scipy.sparse.csr_array(w.astype(np.float64)) @ x.T.astype(np.float64)).T
    assert (np.abs(y - exact) <= bound(x, w)).all()
    assert same_bits(m.matmul(x, threads=3), m.matmul(x, threads=1))
    g = rng.standard_normal((batch, w.shape[0])).astype(np.float32)
    back = m.matmul_transposed(g)
    assert back.shape == (batch, w.shape[1])
    assert (np.abs(back - g.astype(np.float64) @ w) <= bound(g, w.T)).all()
    assert same_bits(m.matmul_transposed(g, threads=3), m.matmul_transposed(g, threads=1))
    if batch:
        assert (np.abs(m.matvec(x[0]) - exact[0]) <= bound(x[:1], w)[0]).all()


@given(
    st.sampled_from([1, 5, 64, 67, 130]),
    st.sampled_from([1, 7, 63, 64, 130, 2048, 2100]),
    st.sampled_from([1, 2, 17, 32, 33, 256, 300]),
    st.sampled_from([0.35, 0.45, 0.55, 0.9, 1.0]),
    st.sampled_from([2, 3, 8, 9, 16, 33, 128, 257]),
    pairs,
    st.sampled_from(["size", "speed"]),
    st.integers(0, 1000),
)
def test_hardly_pruned_matrices_multiply_batches_within_the_bound(
    nrows, ncols, k, density, batch, pair, goal, seed
):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(k).astype(np.float32)[rng.integers(0, k, (nrows, ncols))]
    w[rng.random(w.shape) >= density] = 0
    m = CompressedMatrix.compress(w, *pair, goal=goal)
    x = rng.standard_normal((batch, ncols)).astype(np.float32)
    y = m.matmul(x, threads=1)
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    assert (np.abs(y - exact) <= bound(x, w)).all()
    assert all(same_bits(m.matmul(x, threads=threads), y) for threads in (2, 3, 8))
    # What is not finite reaches the rows that keep its column, in its own member of the batch.
    member, col = rng.integers(batch), rng.integers(ncols)
    x[member, col] = rng.choice(np.float32([np.inf, -np.inf, np.nan]))
    z = m.matmul(x, threads=1)
    reached = np.zeros(z.shape, bool)
    reached[member] = w[:, col] != 0
    assert np.array_equal(np.isfinite(z), ~reached)
    assert (np.abs(z - exact) <= bound(np.where(np.isfinite(x), x, 4), w))[~reached].all()
    assert same_bits(m.matmul(x, threads=3), z)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pruned_weight_contributes_nothing_where_x_is_not_finite(pair: tuple[str, str]):
    w = np.float32([[0, 2, 0], [0, 0, 0], [1, 0, 0]])
    x = np.float32([np.inf, 3, np.nan])
    m = CompressedMatrix.compress(w, *pair)
    np.testing.assert_array_equal(m.matvec(x), np.float32([6, 0, np.inf]))
    np.testing.assert_array_equal(m.matmul(x[None].repeat(9, 0))[8], np.float32([6, 0, np.inf]))
    g = np.float32([[np.nan, np.inf, 2]])
    np.testing.assert_array_equal(m.matmul_transposed(g), np.float32([[2, np.nan, 0]]))


@given(matrices(), pairs, st.data())
def test_rows_are_the_dense_rows(w: np.ndarray, pair: tuple[str, str], data: st.DataObject):
    m = CompressedMatrix.compress(w, *pair)
    ids = data.draw(st.lists(st.integers(0, len(w) - 1), max_size=9)) if len(w) else []
    assert same_bits(m.rows(np.array(ids, np.int64)), w[np.array(ids, np.int64)])
    with pytest.raises(ValueError, match=f"row {len(w)}"):
        m.rows([len(w)])
    with pytest.raises(ValueError, match="row -1"):
        m.rows([-1])


@given(matrices(), pairs, pairs)
def test_any_layout_becomes_any_other(w: np.ndarray, first: tuple[str, str], second):
    m = CompressedMatrix.compress(w, *first).to(*second)
    assert (m.layout, m.coder) == second
    assert same_bits(m.decompress(), w)
    assert m.nbytes == CompressedMatrix.compress(w, *second).nbytes


@given(matrices(), pairs)
def test_bytes_and_pickles_give_an_equal_matrix(w: np.ndarray, pair: tuple[str, str]):
    m = CompressedMatrix.compress(w, *pair)
    for again in (
        CompressedMatrix.from_bytes(m.to_bytes()),
        pickle.loads(pickle.dumps(m)),
        copy.deepcopy(m),
    ):
        assert again == m
        assert again.to_bytes() == m.to_bytes()
        assert same_bits(again.decompress(), w)
        x = np.ones((3, w.shape[1]), np.float32)
        assert same_bits(again.matmul(x), m.matmul(x))


@given(matrices(), pairs)
def test_symbols_and_codebook_give_the_matrix_of_their_values(w, pair):
    bits = w.view(np.uint32)
    mask = bits != 0
    values, symbols = np.unique(bits[mask], return_inverse=True)
    grid = np.zeros(w.shape, np.uint16)
    grid[mask] = symbols
    codebook = Codebook(values.view(np.float32))
    assert len(codebook) == len(values)
    assert same_bits(codebook.values, values.view(np.float32))
    m = CompressedMatrix.from_symbols(grid, codebook, mask, *pair)
    assert same_bits(m.decompress(), w)


@pytest.mark.parametrize("goal", ["size", "speed"])
@given(w=matrices())
def test_auto_chooses_a_pair_and_for_size_none_larger_than_dense(w: np.ndarray, goal: str):
    m = CompressedMatrix.compress(w, goal=goal)
    assert (m.layout, m.coder) in PAIRS
    assert same_bits(m.decompress(), w)
    if goal == "size":
        assert m.nbytes <= CompressedMatrix.compress(w, "dense").nbytes


@pytest.mark.parametrize("k", [2470, 2480, 2485])
def test_for_size_dense_is_taken_where_it_is_a_trifle_smaller(k: int):
    rng = np.random.default_rng(0)
    values, w = rng.standard_normal(k).astype(np.float32), np.zeros(64 * 60, np.float32)
    w[rng.permutation(w.size)[:3447]] = values[np.arange(3447) % k]
    m = CompressedMatrix.compress(w.reshape(64, 60))
    assert m.nbytes <= CompressedMatrix.compress(w.reshape(64, 60), "dense").nbytes


@pytest.mark.parametrize("layout", ["auto", "dense", "csr"])
def test_more_values_than_symbols_are_held_as_they_are(layout: str):
    w = np.arange(70_000, dtype=np.float32).reshape(70, 1000)
    m = CompressedMatrix.compress(w, layout)
    assert same_bits(m.decompress(), w)
    assert len(m.codebook) == m.nnz == 69_999
    with pytest.raises(ValueError, match="65"):
        m.to("packed")


@pytest.mark.parametrize("k", [1, 32, 256, 257, 1000])
@pytest.mark.parametrize("kept", [0.0, 0.4, 0.6, 1.0])
def test_for_speed_any_density_is_lossless_in_the_coder_asked_for(k: int, kept: float):
    rng = np.random.default_rng(k)
    w = rng.choice(rng.standard_normal(k).astype(np.float32), (60, 70))
    w[rng.random(w.shape) >= kept] = 0
    x = rng.standard_normal((9, 70)).astype(np.float32)
    for coder in (None, "fixed"):
        matrix = CompressedMatrix.compress(w, coder=coder or "auto", goal="speed")
        assert coder in (None, matrix.coder)
        assert np.array_equal(matrix.decompress(), w)
        np.testing.assert_allclose(
            matrix.matmul(x), x.astype(np.float64) @ w.T, rtol=1e-5, atol=1e-4
        )


def test_65536_values_are_symbols():
    w = np.arange(1, 65_537, dtype=np.float32).reshape(64, 1024)
    assert same_bits(CompressedMatrix.compress(w, "packed").decompress(), w)


def test_array_likes_are_taken_where_nothing_is_lost():
    w = np.float32([[1, 0, 2], [0, 0, 3]])
    m = CompressedMatrix.compress(w)
    half = CompressedMatrix.compress(w.astype(np.float16))
    assert m == half == CompressedMatrix.compress(np.asfortranarray(w))
    assert CompressedMatrix.compress(w.T[::-1]).decompress().tolist() == w.T[::-1].tolist()
    np.testing.assert_array_equal(m.matvec([1, 2, 3]), [7, 9])
    np.testing.assert_array_equal(m.matmul(np.ones((2, 6))[:, ::2]), [[3, 3]] * 2)
    frozen = np.ones(3, np.float32)
    frozen.flags.writeable = False
    np.testing.assert_array_equal(m.matvec(frozen), [3, 3])


def test_wrong_arguments_are_named():
    m = CompressedMatrix.compress(np.eye(4, 3, dtype=np.float32))
    for call, message in (
        (lambda: CompressedMatrix.compress(np.eye(3)), "float64"),
        (lambda: CompressedMatrix.compress(np.ones(3, np.float32)), "weights: shape"),
        (lambda: CompressedMatrix.compress(np.eye(3, dtype="f4"), "zip"), "zip"),
        (lambda: CompressedMatrix.compress(np.eye(3, dtype="f4"), coder="zip"), "zip"),
        (lambda: CompressedMatrix.compress(np.eye(3, dtype="f4"), goal="fast"), "fast"),
        (lambda: m.matvec(np.ones(4)), "x has 4 numbers"),
        (lambda: m.matmul(np.ones((2, 4))), "expected"),
        (lambda: m.matmul(np.ones(3)), "expected 2 dimensions"),
        (lambda: m.matvec(np.ones(3), threads=0), "threads: 0"),
        (lambda: m.matmul_transposed(np.ones((2, 3))), "expected"),
        (lambda: Codebook(np.float32([1, 1])), "1"),
        (lambda: Codebook(np.float32([0])), "0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for data in (b"", b"x" * 100, m.to_bytes()[:-1], m.to_bytes() + b"\0"):
        with pytest.raises(FormatError):
            CompressedMatrix.from_bytes(data)


def test_symbols_beyond_the_codebook_are_refused():
    codebook, mask = Codebook(np.float32([1, 2])), np.ones((1, 3), np.bool_)
    with pytest.raises(ValueError, match="2"):
        CompressedMatrix.from_symbols(np.uint16([[0, 1, 2]]), codebook, mask)
    with pytest.raises(ValueError, match="mask: shape"):
        CompressedMatrix.from_symbols(np.uint16([[0, 1, 1]]), codebook, mask[:, :2])


@pytest.mark.parametrize("pair", PAIRS)
def test_every_flipped_bit_is_an_error_or_harmless(pair: tuple[str, str]):
    rng = np.random.default_rng(0)
    w = np.where(rng.random((9, 11)) < 0.3, rng.integers(1, 5, (9, 11)), 0).astype(np.float32)
    good = CompressedMatrix.compress(w, *pair).to_bytes()
    for place in range(8 * len(good)):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        try:
            found = CompressedMatrix.from_bytes(bytes(bad))
        except FormatError:
            continue
        assert same_bits(found.decompress(), w)


@pytest.mark.parametrize("pair", PAIRS)
def test_threads_may_share_a_matrix(pair: tuple[str, str]):
    rng = np.random.default_rng(0)
    w = np.where(rng.random((90, 70)) < 0.3, rng.integers(1, 5, (90, 70)), 0).astype(np.float32)
    m = CompressedMatrix.compress(w, *pair)
    x = rng.standard_normal((9, 70)).astype(np.float32)
    expected, wrong = m.matmul(x), []

    def multiply() -> None:
        wrong.extend(i for i in range(100) if not same_bits(m.matmul(x), expected))

    threads = [threading.Thread(target=multiply) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_lists_are_taken_where_their_values_come_through():
    assert Codebook([1.5, -2.0]).values.tolist() == [1.5, -2.0]
    assert CompressedMatrix.compress([[0.5, 0], [0, 1]]).decompress().tolist() == [[0.5, 0], [0, 1]]
    with pytest.raises(ValueError, match="codebook: dtype float64, expected float32"):
        Codebook([0.1])
    with pytest.raises(ValueError, match="weights: dtype float64, expected float32"):
        CompressedMatrix.compress(np.ones((2, 2)))


def test_odd_arguments_are_named_or_right():
    matrix = CompressedMatrix.compress(np.eye(4, dtype=np.float32))
    for threads in (0, -1):
        with pytest.raises(ValueError, match=f"threads: {threads}, expected at least 1"):
            matrix.matvec(np.ones(4), threads=threads)
    assert matrix.rows([]).shape == (0, 4)
    unaligned = np.frombuffer(b"\0" + np.arange(4, dtype="<f4").tobytes(), "<f4", 4, 1)
    assert matrix.matvec(unaligned).tolist() == [0, 1, 2, 3]
    other_bytes = np.array([[2, 0, 0, 3]], np.uint8).view(bool)
    symbols = np.zeros((1, 4), np.uint16)
    found = CompressedMatrix.from_symbols(symbols, Codebook([1.5]), other_bytes)
    assert found.decompress().tolist() == [[1.5, 0, 0, 1.5]]
