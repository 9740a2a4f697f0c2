"""The authors' own pruned and quantized layers: lossless everywhere, published sizes to the byte."""

import heapq
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

import tersenet
from tersenet import bounds

DATA = os.environ.get("TERSENET_DATA")
FOLDER = Path(DATA or "absent", "sham_layers")
LAYERS = sorted(path.stem for path in FOLDER.glob("*.npz"))

pytestmark = pytest.mark.skipif(
    not LAYERS, reason="TERSENET_DATA names no folder with sham_layers in it"
)


def layer(name):
    """The layer as [out, in], float32."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        return np.ascontiguousarray(stored["codebook"][stored["indices"]].T)


def stream_bits(counts):
    """The cost of Huffman's code: the sum of the nodes of his tree."""
    heap = [int(count) for count in counts]
    heapq.heapify(heap)
    cost = 0
    while len(heap) > 1:
        node = heapq.heappop(heap) + heapq.heappop(heap)
        cost += node
        heapq.heappush(heap, node)
    return cost


def longest(sections):
    """The longest codeword, from the number of first codewords: L + 2 words that hold 2^L."""
    for bits, word in itertools.product(range(64), (1, 2, 4, 8)):
        if sections["first_codewords"] == (bits + 2) * word and word_nbytes(2**bits) == word:
            return bits
    raise AssertionError(sections)


def word_nbytes(largest):
    return next(n for n in (1, 2, 4, 8) if largest < 256**n)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layout_gives_back_the_layer_bit_by_bit(name):
    weights = layer(name)
    x = np.random.default_rng(0).standard_normal(weights.shape[1]).astype(np.float32)
    exact = weights.astype(np.float64) @ x
    total = np.abs(weights).astype(np.float64) @ np.abs(x)
    n = weights.shape[1]
    for layout in ("hac", "shac", "packed", "cser", "index_map"):
        matrix = tersenet.CompressedMatrix.compress(weights, layout)
        assert np.array_equal(matrix.decompress().view(np.uint32), weights.view(np.uint32))
        error = np.abs(matrix.matvec(x) - exact)
        assert (error <= (n + 2) * 2.0**-24 * total + n * 2.0**-149).all(), layout


@pytest.mark.parametrize("name", LAYERS)
def test_published_sections_are_the_published_formulas(name):
    weights = layer(name)
    kept = weights[weights != 0]
    values, counts = np.unique(kept, return_counts=True)
    for layout in ("hac", "shac"):
        matrix = tersenet.CompressedMatrix.compress(weights, layout, columns="raw")
        sections = matrix.sections()
        named = matrix.nbytes - sections["header"] - sections["row_ends"]
        if layout == "hac":
            zeros = weights.size - kept.size
            bits = stream_bits([*counts, zeros] if zeros else counts)
            expected = bounds.hac_bits(bits, values.size + bool(zeros), longest(sections))
        else:
            bits = stream_bits(counts)
            expected = bounds.shac_bits(
                weights.shape, kept.size, bits, values.size, longest(sections)
            )
        assert named * 8 == expected, (layout, sections)


# Percent of dense float32: 0.5 % over the order-0 entropy at most, and these.
ARCHIVED = {
    "dta_deepdtadavis_prune30_k16": 10.2,
    "dta_deepdtadavis_prune60_k256": 9.15,
    "dta_deepdtadavis_prune80_k16": 3.6,
    "vgg_vgg19mnist_prune80_k256": 1.27,
    "vgg_vgg19mnist_prune90_k32": 0.285,
    "vgg_vgg19mnist_prune97_k32": 0.104,
}


@pytest.mark.parametrize("name", ARCHIVED)
def test_an_archive_is_as_small_as_the_model_makes_it_and_lossless(name):
    weights = layer(name)
    archive = tersenet.CompressedMatrix.compress(weights, "archive")
    assert archive.nbytes <= weights.nbytes * ARCHIVED[name] / 100
    assert archive.nbytes * 8 <= bounds.entropy_bits(weights) * 1.005
    again = tersenet.CompressedMatrix.from_bytes(archive.to_bytes())
    assert again.decompress().tobytes() == weights.tobytes()


@pytest.mark.parametrize("name", [name for name in LAYERS if "prune97" in name])
def test_coded_columns_take_at_most_five_ninths_of_the_published_at_97_percent(name):
    weights = layer(name)
    coded = tersenet.CompressedMatrix.compress(weights, "shac")
    published = tersenet.CompressedMatrix.compress(weights, "shac", columns="raw")
    assert published.sections()["row_ends"] >= 4 * weights.shape[0]
    assert coded.nbytes * 1.8 <= published.nbytes
