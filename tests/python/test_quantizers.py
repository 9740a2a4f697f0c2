"""Quantizers against exhaustive optima, scikit-learn, and what each of them promises."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.cluster import KMeans

from tersenet.quantization import QUANTIZERS, Quantized, cws, ecsq, pws, quantize_arrays, uq

NAMES = sorted(QUANTIZERS)
FINITE = st.floats(-100, 100, width=32).map(lambda v: v if abs(v) > 1e-3 else 0.0)
WEIGHTS = hnp.arrays(
    np.float32, hnp.array_shapes(max_dims=3, max_side=9, min_side=0), elements=FINITE
)


def bits(array):
    return np.ascontiguousarray(array, np.float32).view(np.int32)


def optimal_inertia(values, k):
    """Exact k-means in one dimension: every split of the sorted values, level by level."""
    values = np.sort(values.astype(np.float64))
    n = values.size
    cost = np.full((n, n), np.inf)
    for i in range(n):
        for j in range(i, n):
            cell = values[i : j + 1]
            cost[i, j] = ((cell - cell.mean()) ** 2).sum()
    best = cost[0].copy()
    for _ in range(1, k):
        best = np.array(
            [min([best[j], *(best[i - 1] + cost[i, j] for i in range(1, j + 1))]) for j in range(n)]
        )
    return best[-1]


def inertia(weights, result):
    error = weights.astype(np.float64) - result.values()
    return float((error[result.mask] ** 2).sum())


def cost(weights, result, lam):
    counts = np.bincount(result.symbols[result.mask], minlength=result.k)
    return inertia(weights, result) - lam * float((counts * np.log2(counts / counts.sum())).sum())


@pytest.mark.parametrize("name", NAMES)
@given(weights=WEIGHTS, k=st.integers(1, 12), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_kept_weights_get_a_value_and_pruned_ones_are_exactly_zero(name, weights, k, seed):
    result = QUANTIZERS[name](weights, k, seed=seed)
    kept = weights != 0
    assert result.k <= k and result.shape == weights.shape
    assert not (result.mask & ~kept).any()
    assert result.nnz + result.dropped == np.count_nonzero(kept)
    assert (bits(result.values())[~result.mask] == 0).all()
    assert (result.values()[result.mask] != 0).all()
    assert (result.symbols[~result.mask] == 0).all()
    assert set(result.symbols[result.mask]) == set(range(result.k))
    again = QUANTIZERS[name](weights, k, seed=seed)
    assert np.array_equal(bits(result.values()), bits(again.values()))


@pytest.mark.parametrize("name", NAMES)
@given(weights=WEIGHTS)
@settings(max_examples=40, deadline=None)
def test_a_k_of_at_least_the_distinct_values_is_lossless(name, weights):
    distinct = np.unique(weights[weights != 0])
    result = QUANTIZERS[name](weights, max(distinct.size, 1))
    assert np.array_equal(bits(result.values()), bits(np.where(weights == 0, 0, weights)))
    assert np.array_equal(result.codebook, distinct) and result.dropped == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float_dtype_and_any_strides_are_taken(name, dtype):
    weights = np.random.default_rng(1).normal(size=(12, 20)).astype(dtype)
    result = QUANTIZERS[name](weights.T[::2], 5)
    expected = QUANTIZERS[name](np.ascontiguousarray(weights.T[::2].astype(np.float32)), 5)
    assert np.array_equal(result.values(), expected.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (4,), ()])
def test_nothing_kept_gives_an_empty_codebook(name, shape):
    result = QUANTIZERS[name](np.zeros(shape, np.float32), 4)
    assert (result.k, result.nnz, result.shape) == (0, 0, shape)
    assert np.array_equal(result.values(), np.zeros(shape, np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_hides_weights_and_their_nan(name):
    weights = np.float32([1, np.nan, 2, 3, np.inf, 9, 0])
    mask = np.array([True, False, True, True, False, True, True])
    before = mask.copy()
    result = QUANTIZERS[name](weights, 2, mask=mask)
    assert np.isfinite(result.values()).all()
    assert not result.mask[[1, 4]].any() and np.array_equal(mask, before)
    alone = QUANTIZERS[name](weights[mask], 2, mask=np.ones(5, bool))
    assert np.array_equal(np.sort(alone.codebook), np.sort(result.codebook)) or name == "pws"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zero", [0.0, -0.0, 1e-60])
def test_a_kept_weight_whose_value_is_zero_leaves_the_mask_and_is_counted(name, zero):
    result = QUANTIZERS[name](np.array([zero, 1.0, 2.0, zero]), 3, mask=np.ones(4, bool))
    assert (result.k, result.nnz, result.dropped) == (2, 2, 2)
    assert np.array_equal(bits(result.values()), bits([0, 1, 2, 0]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 2, 256, 257, 65_536])
def test_every_size_of_codebook_is_reached(name, k):
    weights = np.random.default_rng(k).normal(size=200_000).astype(np.float32)
    result = QUANTIZERS[name](weights, k)
    assert k // 2 <= result.k <= k
    kept = result.mask
    spread = np.ptp(weights) / min(k, 300) * (1 if name != "pws" else 300)
    assert np.abs(weights - result.values())[kept].mean() <= spread


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [0, -1, 65_537, 2.5, "8", True])
def test_a_k_out_of_range_is_an_error(name, k):
    with pytest.raises(ValueError, match=rf"^{name}: k is .*, expected an integer in \[1, 65536\]"):
        QUANTIZERS[name](np.ones(3, np.float32), k)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_weight_that_is_not_finite_is_an_error_that_says_where(name, bad):
    weights = np.ones((3, 10))
    weights[1, 7] = weights[2, 0] = bad
    message = f"{name}: weights hold 2 non-finite values, first at flat position 17, expected"
    with pytest.raises(ValueError, match=message):
        QUANTIZERS[name](weights, 4)


@pytest.mark.parametrize("name", NAMES)
def test_integers_and_misfit_masks_are_errors(name):
    with pytest.raises(ValueError, match=f"{name}: weights are int64, expected a float array"):
        QUANTIZERS[name](np.arange(4), 2)
    for mask in (np.ones(3, bool), np.ones(4, int)):
        with pytest.raises(ValueError, match=f"{name}: mask is "):
            QUANTIZERS[name](np.ones(4, np.float32), 2, mask=mask)


@given(values=hnp.arrays(np.float32, st.integers(1, 24), elements=FINITE), k=st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_cws_is_optimal_where_few_values_are_distinct(values, k):
    result = cws(values, k, mask=np.ones(values.size, bool))
    error = values.astype(np.float64) - result.values()
    best = optimal_inertia(values, min(k, values.size))
    assert (error**2).sum() <= best * (1 + 1e-5) + 1e-7


@pytest.mark.parametrize("k", [4, 32])
@pytest.mark.parametrize("kind", ["normal", "laplace", "clumps", "outlier", "offset"])
def test_cws_is_within_half_a_percent_of_scikit_learn(kind, k):
    random = np.random.default_rng(7)
    weights = {
        "normal": lambda: random.normal(size=6000),
        "laplace": lambda: random.laplace(size=6000),
        "clumps": lambda: np.repeat(random.normal(size=100), 60) + random.normal(0, 1e-3, 6000),
        "outlier": lambda: np.append(random.normal(size=5999), 1e4),
        "offset": lambda: 1000 + random.normal(size=6000),
    }[kind]().astype(np.float32)
    peer = KMeans(k, n_init=4, random_state=0, tol=0).fit(weights[:, None].astype(np.float64))
    assert inertia(weights, cws(weights, k)) <= 1.005 * peer.inertia_ + 1e-9


def test_cws_beyond_the_exact_start_keeps_up_with_scikit_learn():
    random = np.random.default_rng(8)
    clumps = np.repeat(random.normal(size=100), 40) + random.normal(0, 1e-3, 4000)
    for weights in (clumps, random.standard_t(2, size=4000)):
        peer = KMeans(300, n_init=1, random_state=0).fit(weights[:, None])
        weights = weights.astype(np.float32)
        assert inertia(weights, cws(weights, 300)) <= 1.1 * peer.inertia_


def test_cws_gives_each_weight_its_nearest_value():
    weights = np.random.default_rng(3).normal(size=5000).astype(np.float32)
    result = cws(weights, 20)
    nearest = np.abs(weights[:, None] - result.codebook[None]).argmin(axis=1)
    chosen = np.abs(weights - result.values())
    best = np.abs(weights - result.codebook[nearest])
    assert (chosen <= best + 1e-4).all() and (result.symbols == nearest).mean() > 0.995


def test_pws_is_unbiased():
    weights = np.random.default_rng(5).normal(size=300).astype(np.float32)
    runs = 500
    results = [pws(weights, 6, seed=seed) for seed in range(runs)]
    mean = np.mean([r.values().astype(np.float64) for r in results], axis=0)
    grid = np.unique(np.quantile(weights.astype(np.float64), np.arange(6) / 5))
    gap = np.diff(grid)[np.clip(np.searchsorted(grid, weights, side="right") - 1, 0, 4)]
    # Hoeffding: a mean of `runs` values within `gap` is off by more with probability 1e-9 in all
    bound = gap * np.sqrt(np.log(2 * weights.size / 1e-9) / (2 * runs)) + 1e-6
    assert (np.abs(mean - weights) <= bound).all()
    up = np.mean([(r.values() > weights).mean() for r in results])
    assert 0.3 < up < 0.7  # it is random, not rounding


@given(weights=hnp.arrays(np.float32, st.integers(2, 60), elements=FINITE), k=st.integers(2, 9))
@settings(max_examples=80, deadline=None)
def test_pws_draws_one_of_the_two_neighbouring_quantiles(weights, k):
    mask = np.ones(weights.size, bool)
    assume(np.unique(weights).size > k)
    values = pws(weights, k, mask=mask, seed=1).values()
    grid = np.quantile(weights.astype(np.float64), np.arange(k) / (k - 1)).astype(np.float32)
    slack = 1e-4  # of quantiles rounded differently
    lo = np.array([grid[grid <= w + slack].max() for w in weights])
    hi = np.array([grid[grid >= w - slack].min() for w in weights])
    near = np.minimum(np.abs(values - lo), np.abs(values - hi))
    assert (near <= slack).all()


def test_pws_has_one_representative_for_repeated_quantiles():
    weights = np.float32([1] * 50 + [2, 3, 4, 5, 6])
    result = pws(weights, 4, seed=0)
    assert np.isfinite(result.values()).all() and (result.values()[:50] == 1).all()


def test_pws_with_other_seeds_differs():
    weights = np.linspace(1, 2, 200, dtype=np.float32)
    assert not np.array_equal(pws(weights, 3, seed=0).symbols, pws(weights, 3, seed=1).symbols)


@pytest.mark.parametrize("beta", [0.0, 0.3, -0.01])
@pytest.mark.parametrize("k", [2, 7, 16])
def test_uq_is_the_published_rounding_with_the_finest_step(k, beta):
    weights = np.linspace(-1, 1.3, 4001).astype(np.float32)
    result = uq(weights, k, beta=beta)
    points = np.unique(result.values().astype(np.float64))
    delta = np.ptp(points) / np.round(np.ptp(points) / np.diff(points).min())
    rounded = delta * np.round((weights.astype(np.float64) + beta) / delta) - beta
    on_edge = np.abs((weights + beta) / delta % 1 - 0.5) < 1e-3
    assert np.allclose(result.values()[~on_edge], rounded[~on_edge], atol=1e-6)
    finer = delta * (1 - 1e-4)
    count = np.unique(np.round((weights + beta) / finer) * finer - beta)
    assert np.count_nonzero(np.abs(count) > 1e-9) > k


def test_uq_counts_what_falls_on_zero():
    result = uq(np.float32([-2, -0.1, 0.1, 1, 2, 3]), 4)
    assert result.dropped == 2 and result.nnz == 4
    with pytest.raises(ValueError, match="uq: beta is nan"):
        uq(np.ones(2, np.float32), 1, beta=np.nan)


@given(
    weights=hnp.arrays(np.float32, st.integers(2, 80), elements=FINITE),
    k=st.integers(1, 8),
    lam=st.floats(1e-4, 1e3),
)
@settings(max_examples=80, deadline=None)
def test_ecsq_costs_no_more_than_k_means_at_its_lambda(weights, k, lam):
    mask = weights != 0
    assume(mask.any())
    ours, peer = ecsq(weights, k, lam=lam), cws(weights, k)
    assume(ours.dropped == 0 and peer.dropped == 0)
    assert ours.k <= k
    assert cost(weights, ours, lam) <= cost(weights, peer, lam) * (1 + 1e-4) + 1e-3


def test_ecsq_spends_fewer_bits_as_lambda_grows():
    weights = np.random.default_rng(2).laplace(size=20_000).astype(np.float32)
    found = []
    for lam in (0.0, 1e-4, 1e-2, 1.0, 1e6):
        result = ecsq(weights, 64, lam=lam)
        p = np.bincount(result.symbols) / weights.size
        found.append((-(p * np.log2(p)).sum(), -inertia(weights, result)))
    assert found == sorted(found, reverse=True) and found[-1][0] == 0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("k", [3, 16, 100])
def test_ecsq_finds_k_values_at_any_scale_of_the_weights(scale, k):
    weights = (scale * np.random.default_rng(4).laplace(size=30_000)).astype(np.float32)
    assert 0.8 * k <= ecsq(weights, k).k <= k


def test_ecsq_with_lambda_alone_chooses_k_and_groups_are_cheapest():
    weights = np.random.default_rng(6).normal(size=20_000).astype(np.float32)
    lam = 1e-3
    result = ecsq(weights, None, lam=lam, tol=0, max_iter=5000)
    p = np.bincount(result.symbols) / weights.size
    prices = (weights[:, None] - result.codebook[None].astype(np.float64)) ** 2 - lam * np.log2(p)
    chosen = prices[np.arange(weights.size), result.symbols]
    assert 4 < result.k < 200
    assert (chosen - prices.min(axis=1) <= 1e-6).all()


def test_ecsq_of_equally_frequent_values_still_gets_down_to_k():
    weights = np.arange(1, 101, dtype=np.float32)
    assert 1 <= ecsq(weights, 10).k <= 10
    assert ecsq(np.float32([1, 2]), 1).k == 1


@pytest.mark.parametrize("options", [{}, {"lam": -1.0}, {"lam": np.nan}, {"lam": np.inf}])
def test_ecsq_without_k_needs_a_good_lambda(options):
    with pytest.raises(ValueError, match="ecsq: "):
        ecsq(np.ones(3, np.float32), None, **options)


@pytest.mark.parametrize("name", NAMES)
@given(arrays=st.lists(WEIGHTS, max_size=4), k=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_one_codebook_for_several_arrays_is_that_of_their_kept_weights_joined(name, arrays, k):
    named = {str(i): array for i, array in enumerate(arrays)}
    results = quantize_arrays(named, name, k, seed=3)
    assert list(results) == list(named)
    joined = np.concatenate([a[a != 0] for a in arrays]) if arrays else np.zeros(0, np.float32)
    if len(arrays) > 1:
        expected = QUANTIZERS[name](joined, k, seed=3)
        parts = [r.values()[a != 0] for r, a in zip(results.values(), arrays, strict=True)]
        assert np.array_equal(np.concatenate(parts), expected.values())
    books = [r.codebook for r in results.values() if r.nnz]
    assert all(book is books[0] for book in books)
    assert all(r.values()[a == 0].sum() == 0 for r, a in zip(results.values(), arrays, strict=True))


def test_joined_arrays_respect_masks_and_refuse_nonsense():
    arrays = {"a": np.float32([1, 2, 3]), "b": np.float32([4, 5])}
    masks = {"a": np.array([True, False, False]), "b": np.array([False, False])}
    results = quantize_arrays(arrays, "cws", 2, masks=masks)
    assert results["a"].codebook.tolist() == [1] and results["b"].k == 0
    for call in (
        lambda: quantize_arrays(arrays, "cwz", 2),
        lambda: quantize_arrays(arrays, "cws", 2, lam=0.5),
        lambda: quantize_arrays(arrays, "cws", 2, masks={"c": masks["a"]}),
        lambda: quantize_arrays(arrays, "cws", 2, masks={"a": masks["b"]}),
    ):
        with pytest.raises(ValueError, match=r"^quantize: .* expected "):
            call()


@given(
    codebook=hnp.arrays(
        np.float32, st.integers(1, 8), elements=st.sampled_from([0, -0.0, 1, -1, np.nan, np.inf, 2])
    ),
    symbols=hnp.arrays(np.uint16, (3, 5), elements=st.integers(0, 7)),
    mask=hnp.arrays(np.bool_, (3, 5)),
    keep_unused=st.booleans(),
)
def test_any_codebook_is_brought_to_order_without_changing_a_weight(
    codebook, symbols, mask, keep_unused
):
    symbols = np.where(symbols < codebook.size, symbols, 0).astype(np.uint16)
    dense = np.where(mask, codebook[symbols], np.float32(0))
    result = Quantized.of(codebook, symbols.copy(), mask.copy(), keep_unused=keep_unused)
    assert np.array_equal(bits(result.values()), bits(dense))
    assert result.nnz == np.count_nonzero(bits(dense)) and result.dropped == mask.sum() - result.nnz
    if not keep_unused:
        assert result.k == np.unique(bits(dense)[bits(dense) != 0]).size


F, U = np.float32, np.uint16


@pytest.mark.parametrize(
    ("codebook", "symbols", "mask", "message"),
    [
        (F([1, 1]), U([0, 1]), [True, True], "codebook\\[1\\] is 1.0 after 1.0, expected distinct"),
        (F([2, 1]), U([0, 1]), [True, True], "expected distinct values in ascending order"),
        (F([0, 1]), U([0, 1]), [True, True], "codebook\\[0\\] is \\+0.0"),
        (F([1]), U([0, 1]), [True, True], "symbols hold 1 at flat position 1, expected less than"),
        (F([1, 2]), U([0, 1]), [True, False], "expected 0 where the mask is False"),
        (F([1]), U([0, 0]), [False, False], "codebook holds 1 values for 0 kept"),
        (F([]), U([0, 0]), [True, False], "codebook holds 0 values for 1 kept"),
        (F([1]), U([0]), [True, False], "mask has shape"),
        (F([[1]]), U([0]), [True], "codebook has shape"),
        (np.float64([1]), U([0]), [True], "codebook is float64, expected a float32 array"),
        (F([1]), np.int64([0]), [True], "symbols is int64, expected a uint16 array"),
    ],
)
def test_an_invalid_quantized_cannot_be_made(codebook, symbols, mask, message):
    with pytest.raises(ValueError, match=message):
        Quantized(codebook, symbols, np.array(mask, bool))
