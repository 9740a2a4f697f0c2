"""Archives of a file that go on from each other: any of them comes back, in any order; damage is refused."""

from __future__ import annotations

import zlib

import decoder
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tersenet
from tersenet import CompressedMatrix, FormatError


def layer(seed: int, nrows: int, ncols: int, kept: float, k: int) -> np.ndarray:
    """Weights of few values, of which some are kept."""
    rng = np.random.default_rng(seed)
    values = np.sort(rng.normal(size=k)).astype(np.float32)
    weights = values[rng.integers(0, k, (nrows, ncols))]
    return np.where(rng.random((nrows, ncols)) < kept, weights, np.float32(0))


def archives(layers: dict[str, np.ndarray]) -> dict[str, CompressedMatrix]:
    return {
        name: CompressedMatrix.compress(weights, layout="archive")
        for name, weights in layers.items()
    }


@settings(max_examples=40)
@given(
    seeds=st.lists(st.integers(0, 1 << 30), min_size=1, max_size=6),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kept=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    k=st.sampled_from([1, 2, 16, 300]),
    order=st.randoms(),
)
def test_each_comes_back_whatever_is_asked_for_first(
    tmp_path_factory, seeds, shape, kept, k, order
):
    path = tmp_path_factory.mktemp("chain") / "chain.terse"
    layers = {f"layer{i}": layer(seed, *shape, kept, k) for i, seed in enumerate(seeds)}
    tersenet.save(archives(layers), path, goal="size")
    names = [name for name in layers for _ in range(2)]
    order.shuffle(names)
    with tersenet.open(path) as file:
        for name in names:
            np.testing.assert_array_equal(file.get(name).decompress(), layers[name], strict=True)
        for name, matrix in file.values(names).items():
            np.testing.assert_array_equal(matrix.decompress(), layers[name], strict=True)
    found = decoder.read(path.read_bytes()).tensors
    for name, weights in layers.items():
        np.testing.assert_array_equal(found[name].array, weights, strict=True)


def test_layers_that_are_alike_are_smaller_together(tmp_path):
    layers = {f"layer{i}": layer(i, 16, 144, 0.1, 16) for i in range(12)}
    stored = archives(layers)
    together = tersenet.save(stored, tmp_path / "all.terse", goal="size")
    alone = [tersenet.save({n: m}, tmp_path / f"{n}.terse", goal="size") for n, m in stored.items()]
    assert together < 0.95 * sum(alone)


def test_one_that_was_read_is_stored_alone_again(tmp_path):
    layers = {f"layer{i}": layer(i, 16, 90, 0.2, 16) for i in range(4)}
    tersenet.save(archives(layers), tmp_path / "all.terse", goal="size")
    with tersenet.open(tmp_path / "all.terse") as file:
        last = file.get("layer3")
    tersenet.save({"last": last}, tmp_path / "one.terse")
    with tersenet.open(tmp_path / "one.terse") as file:
        np.testing.assert_array_equal(file.get("last").decompress(), layers["layer3"], strict=True)


def apart(data: bytes, shape: tuple[int, int], which: int, value: int) -> bytes:
    """Return a file in which archive `which` of that shape stands otherwise apart, resealed."""
    size = int.from_bytes(data[8:12], "little")
    header, at = bytearray(data[16 : 16 + size]), 0
    for _ in range(which + 1):
        at = header.index(bytes([9, 3, *shape]), at) + 4
    while header[at] > 127:  # nnz
        at += 1
    assert header[at + 1] == 3, "three parameters"
    header[at + 4] = value
    checksum = zlib.crc32(header).to_bytes(4, "little")
    return data[:12] + checksum + bytes(header) + data[16 + size :]


@pytest.mark.parametrize(("which", "value"), [(2, 2), (1, 2), (0, 1), (2, 127)])
def test_what_goes_on_from_none_or_from_one_that_another_goes_on_from_is_refused(
    tmp_path, which, value
):
    layers = {f"layer{i}": layer(i, 16, 90, 0.2, 16) for i in range(3)}
    path = tmp_path / "chain.terse"
    tersenet.save(archives(layers), path, goal="size")
    data = path.read_bytes()
    assert apart(data, (16, 90), 2, 1) == data, "each goes on from the one before"
    path.write_bytes(apart(data, (16, 90), which, value))
    with pytest.raises(FormatError, match="goes on"):
        tersenet.open(path)
    with pytest.raises(decoder.Refused, match="goes on"):
        decoder.read(path.read_bytes())
