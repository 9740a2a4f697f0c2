"""Files: what goes in comes out, in another process, and nothing is lost on the way."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from arrays import sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tersenet import CompressedMatrix, _core, files
from tersenet import io as terse
from tersenet.errors import FormatError
from tersenet.io import Limits

settings.register_profile("tersenet", deadline=None, max_examples=60)
settings.load_profile("tersenet")

DTYPES = ["float32", "float64", "float16", "int8", "int64", "uint16", "bool", "complex64"]


arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=4, min_side=0))
)
names = st.text(
    st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=9
)


@given(
    st.dictionaries(names, arrays, max_size=5),
    st.dictionaries(names, names, max_size=3),
    st.sampled_from([None, "size", "speed"]),
)
def test_arrays_and_metadata_come_back_bit_by_bit(tmp_path_factory, values, metadata, goal):
    path = tmp_path_factory.mktemp("io") / "model.terse"
    nbytes = terse.save(values, path, goal, metadata)
    assert os.path.getsize(path) == nbytes
    with terse.open(path) as file:
        assert file.metadata() == metadata
        assert file.keys() == list(values)
        file.verify()
    loaded = terse.load(path)
    assert list(loaded) == list(values)
    for name, array in values.items():
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        assert loaded[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("mmap", [False, True])
def test_matrices_come_back_equal_and_readable_one_by_one(tmp_path, mmap):
    a, b = CompressedMatrix.compress(sparse()), CompressedMatrix.compress(sparse(seed=1), "csr")
    terse.save({"a": a, "b": b}, tmp_path / "m.terse")
    with terse.open(tmp_path / "m.terse", mmap=mmap) as file:
        assert len(file) == 2
        assert "a" in file
        assert "c" not in file
        assert list(file) == ["a", "b"]
        info = file.info("b")
        assert (info["kind"], info["dtype"], info["shape"]) == ("matrix", "float32", (60, 50))
        assert (info["layout"], info["nnz"]) == ("csr", b.nnz)
        assert "k" not in info
        assert file.info("a")["k"] == len(np.unique(sparse()[sparse() != 0]))
        found = file.get("b")
        with pytest.raises(KeyError, match="no tensor 'c'"):
            file.get("c")
    assert found == b
    np.testing.assert_array_equal(found.decompress(), sparse(seed=1))
    with pytest.raises(ValueError, match="closed"):
        file.get("a")


def test_the_fast_level_is_larger_than_the_best_and_holds_the_same(tmp_path):
    rng = np.random.default_rng(8)
    rows = sparse(8, 200, 9)
    weights = rows[rng.integers(0, 8, 300)]
    weights[rng.random(weights.shape) < 0.01] = 0
    matrix = CompressedMatrix.compress(weights)
    best, fast = (
        terse.save({"w": matrix}, tmp_path / f"{level}.terse", goal="size", level=level)
        for level in ("best", "fast")
    )
    assert best < fast < 2 * best < matrix.nbytes
    for level in ("best", "fast"):
        loaded = terse.load(tmp_path / f"{level}.terse")["w"]
        assert loaded.layout == "archive"
        assert np.array_equal(loaded.decompress().view(np.uint32), weights.view(np.uint32))


@pytest.mark.parametrize(
    ("goal", "level", "message"),
    [
        ("size", "better", "save: level is 'better', expected 'best' or 'fast'"),
        ("speed", "fast", "save: level is 'fast' for goal 'speed', expected goal 'size'"),
        (None, "fast", "save: level is 'fast' for goal None, expected goal 'size'"),
    ],
)
def test_a_level_that_is_none_of_the_goal_is_an_error(tmp_path, goal, level, message):
    with pytest.raises(ValueError, match=message):
        terse.save({}, tmp_path / "none.terse", goal=goal, level=level)
    assert not (tmp_path / "none.terse").exists()


def test_a_goal_transcodes_and_none_keeps_the_layout(tmp_path):
    matrix = CompressedMatrix.compress(sparse(200, 300), "dense")
    for goal, layout in ((None, "dense"), ("size", None), ("speed", None)):
        terse.save({"m": matrix}, tmp_path / "m.terse", goal=goal)
        found = terse.load(tmp_path / "m.terse")["m"]
        np.testing.assert_array_equal(found.decompress(), sparse(200, 300))
        if goal == "size":
            assert found.nbytes <= matrix.to(goal=goal).nbytes
        else:
            assert found.layout == (layout or matrix.to(goal=goal).layout)
    with pytest.raises(ValueError, match="goal is 'small'"):
        terse.save({"m": matrix}, tmp_path / "m.terse", goal="small")


def test_a_file_for_size_takes_the_archive_where_it_is_smallest(tmp_path):
    rng = np.random.default_rng(0)
    alike = sparse(4, 200)[rng.integers(0, 4, 300)]
    many = np.arange(1, 8001, dtype=np.float32).reshape(80, 100)
    matrices = {name: CompressedMatrix.compress(w) for name, w in (("a", alike), ("m", many))}
    terse.save(matrices, tmp_path / "m.terse", goal="size")
    loaded = terse.load(tmp_path / "m.terse")
    assert loaded["a"].layout == "archive"
    assert loaded["a"].coder == "mixing"
    assert matrices["a"].layout == "grouped"
    assert loaded["a"].nbytes < matrices["a"].nbytes
    assert loaded["a"].nbytes < matrices["a"].to("coded").nbytes / 2
    assert loaded["m"].layout != "archive"
    np.testing.assert_array_equal(loaded["a"].decompress(), alike)
    np.testing.assert_array_equal(loaded["m"].decompress(), many)
    x = rng.integers(-8, 8, 200).astype(np.float32)
    np.testing.assert_allclose(loaded["a"].matvec(x), alike @ x, rtol=1e-5, atol=1e-4)
    assert loaded["a"].to(goal="size") == matrices["a"]


def layers_alike(count: int) -> dict[str, np.ndarray]:
    """Small layers [24, 8, 3, 3] of the same kind: kernels that are smooth, in rows of any scale."""
    rng = np.random.default_rng(5)
    layers = {}
    for number in range(count):
        smooth = rng.standard_normal((24, 8, 1, 3)) + rng.standard_normal((24, 8, 3, 1))
        weights = smooth * rng.gamma(1, 1, (24, 1, 1, 1)) * (0.05 + 0.01 * number)
        steps = np.round(weights / 0.04).clip(-8, 8).astype(np.float32) / 32
        layers[f"layer{number}.weight"] = steps
    return layers


def as_kernels(layers: dict[str, np.ndarray]) -> dict[str, files.Typed]:
    return {
        name: files.Typed(
            CompressedMatrix.compress(w.reshape(24, 72), "archive", taps=9),
            "float32",
            w.shape,
            name,
        )
        for name, w in layers.items()
    }


def test_archives_of_a_file_for_size_go_on_from_each_other(tmp_path):
    layers = layers_alike(6)
    typed = as_kernels(layers)
    matrices = {name: matrix.value for name, matrix in typed.items()}
    path = tmp_path / "chain.terse"
    terse.save(typed, path, goal="size")
    alone = sum(matrix.sections()["stream"] for matrix in matrices.values())
    with terse.open(path) as file:
        assert {file.info(name)["layout"] for name in file} == {"archive"}
        assert sum(file.info(name)["nbytes"] for name in file) < 0.95 * alone
        file.verify()
    # Lazily, in any order, each from a file just opened or not.
    for names in (list(layers), list(layers)[::-1], ["layer3.weight"], ["layer5.weight"] * 2):
        with terse.open(path) as file:
            for name in names:
                found = file.get(name).decompress().reshape(layers[name].shape)
                assert found.tobytes() == layers[name].tobytes()
    # One of them elsewhere stands alone: in another file, as bytes, pickled, in another layout.
    with terse.open(path) as file:
        last = file.get("layer5.weight")
    assert last.to_bytes() == matrices["layer5.weight"].to_bytes()
    assert pickle.loads(pickle.dumps(last)) == matrices["layer5.weight"]
    terse.save({"copy": last, "again": last.to("coded")}, tmp_path / "copy.terse")
    copy = terse.load(tmp_path / "copy.terse")
    for name in ("copy", "again"):
        assert copy[name].decompress().tobytes() == layers["layer5.weight"].tobytes()
    assert copy["copy"].nbytes == matrices["layer5.weight"].nbytes


def test_a_matrix_that_goes_on_from_what_it_cannot_is_an_error(tmp_path):
    layers = layers_alike(2)
    path = tmp_path / "chain.terse"
    terse.save(as_kernels(layers), path, goal="size")
    data = path.read_bytes()
    nbytes = int.from_bytes(data[8:12], "little")
    header = data[16 : 16 + nbytes]
    # Three parameters, the direction, 9 taps, and how many entries before it goes on from.
    for direction in (0, 1):
        parameters = bytes([3, direction, 9, 1])
        if parameters in header:
            break
    at = header.rindex(parameters) + 3
    for apart, message in ((0, "stream"), (2, "goes on from"), (127, "goes on from")):
        damaged = header[:at] + bytes([apart]) + header[at + 1 :]
        checksum = zlib.crc32(damaged).to_bytes(4, "little")
        path.write_bytes(data[:12] + checksum + damaged + data[16 + nbytes :])
        with pytest.raises(FormatError, match=message), terse.open(path) as file:
            file.get("layer1.weight")


def trained_like(n: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(n) / 16).astype(np.float32)


@pytest.mark.parametrize("mmap", [False, True])
def test_for_size_plain_tensors_are_coded_and_for_speed_they_are_as_they_are(tmp_path, mmap):
    normal = trained_like(300_000)
    values = {
        "float32": normal.reshape(1000, 300),
        "float64": normal[:5000].astype(np.float64),
        "float16": normal.astype(np.float16),
        "pruned": np.where(np.abs(normal) > 0.1, normal, np.float32(0)),
        "masked": normal * (np.abs(normal) > 0.1),  # with zeros of either sign
        "steps": np.arange(9000),
    }
    # The entropy of its exponents, and 24 bits of noise each; then half a percent.
    exponents = np.bincount(normal.view(np.uint32) >> 23 & 255) / normal.size
    entropy = -(exponents[exponents > 0] * np.log2(exponents[exponents > 0])).sum()
    most = {"float32": 1.005 * (24 + entropy) / 32, "float64": 0.5, "float16": 0.9, "steps": 0.3}
    kept = np.count_nonzero(values["pruned"]) / normal.size
    zeros = -kept * np.log2(kept) - (1 - kept) * np.log2(1 - kept)
    most["pruned"] = 1.02 * (kept * (24 + entropy) + zeros) / 32
    most["masked"] = most["pruned"] + (1 - kept) / 32
    path = tmp_path / "m.terse"
    for goal in (None, "speed", "size"):
        terse.save(values, path, goal)
        with terse.open(path, mmap=mmap) as file:
            file.verify()
            for name, array in values.items():
                info = file.info(name)
                assert (info["kind"], info["shape"]) == ("array", array.shape)
                assert file.get(name).tobytes() == array.tobytes()
                if goal == "size":
                    assert info["coder"] == "planes"
                    assert info["nbytes"] < most[name] * array.nbytes, name
                else:
                    assert "coder" not in info
                    assert info["nbytes"] == array.nbytes


def test_for_size_small_tensors_and_noise_stay_as_they_are(tmp_path):
    noise = np.frombuffer(np.random.default_rng(0).bytes(1 << 20), np.uint8)
    values = {"bias": trained_like(10), "scalar": np.ones((), np.float32), "noise": noise}
    plain = terse.save(values, tmp_path / "plain.terse")
    assert terse.save(values, tmp_path / "small.terse", "size") == plain
    assert (tmp_path / "plain.terse").read_bytes() == (tmp_path / "small.terse").read_bytes()


def test_for_size_a_codebook_is_coded_and_comes_back(tmp_path):
    weights = np.resize(trained_like(256), (300, 40))
    matrix = CompressedMatrix.compress(weights, "packed", goal="size")
    plain = terse.save({"m": matrix}, tmp_path / "m.terse")
    assert terse.save({"m": matrix.to(goal="size")}, tmp_path / "m.terse", "size") < plain - 100
    found = terse.load(tmp_path / "m.terse")["m"]
    np.testing.assert_array_equal(found.decompress(), weights)


def test_one_value_under_two_names_is_stored_once_and_tied_again(tmp_path):
    matrix, array = CompressedMatrix.compress(sparse(500, 500)), np.arange(5000.0)
    once = terse.save({"m": matrix, "x": array}, tmp_path / "once.terse")
    values = {"m": matrix, "x": array, "n": matrix, "y": array, "z": array[:9]}
    twice = terse.save(values, tmp_path / "twice.terse")
    assert twice - once < 300
    with terse.open(tmp_path / "twice.terse") as file:
        assert file.info("n")["alias_of"] == "m"
        assert file.info("y")["alias_of"] == "x"
        assert "alias_of" not in file.info("z")
    loaded = terse.load(tmp_path / "twice.terse")
    assert loaded["m"] is loaded["n"]
    assert loaded["x"] is loaded["y"]


def test_strided_and_big_endian_arrays_are_stored_by_value(tmp_path):
    base = np.arange(24, dtype=np.int32).reshape(4, 6)
    values = {"t": base.T, "s": base[::-2, ::3], "b": base.astype(">i4")}
    terse.save(values, tmp_path / "m.terse")
    for name, array in terse.load(tmp_path / "m.terse").items():
        np.testing.assert_array_equal(array, values[name])


def test_wrong_values_are_named_and_the_old_file_stays(tmp_path):
    path = tmp_path / "m.terse"
    terse.save({"x": np.ones(3)}, path)
    before = path.read_bytes()
    for values, message in (
        ({"x": [1, 2]}, "x is list, expected a CompressedMatrix, array or tensor"),
        ({"x": np.array(["a"])}, "x is <U1"),
        ({3: np.ones(2)}, "name is 3, expected a str"),
        ({"a\0b": np.ones(2)}, "NUL"),
    ):
        with pytest.raises(ValueError, match=message):
            terse.save(values, path)
    with pytest.raises(ValueError, match="metadata holds 'a': 1"):
        terse.save({}, path, metadata={"a": 1})
    for unwritable in (tmp_path / "nowhere" / "m.terse", tmp_path):
        with pytest.raises(OSError, match="saving"):
            terse.save({"x": np.ones(3)}, unwritable)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.terse"]


def test_files_that_are_not_ours_are_refused(tmp_path):
    path = tmp_path / "m.terse"
    with pytest.raises(FileNotFoundError):
        terse.open(path)
    terse.save({"w": CompressedMatrix.compress(sparse())}, path)
    good = path.read_bytes()
    for bad in (
        b"",
        b"hello",
        b"<html></html>" * 9,
        good[:-1],
        good + b"\0",
        good[: len(good) // 2],
    ):
        path.write_bytes(bad)
        with pytest.raises(FormatError):
            terse.load(path)
    flipped = bytearray(good)
    flipped[-3] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(FormatError), terse.open(path) as file:
        file.verify()


def test_limits_are_kept(tmp_path):
    path = tmp_path / "m.terse"
    terse.save({"a": np.zeros(1000), "b": np.zeros(10)}, path)
    for limits in (
        Limits(max_tensors=1),
        Limits(max_tensor_nbytes=7999),
        Limits(max_header_nbytes=10),
        Limits(max_total_nbytes=8079),
    ):
        with pytest.raises(FormatError):
            terse.open(path, limits=limits)
    terse.open(path, limits=Limits(max_tensors=2, max_tensor_nbytes=8000, max_total_nbytes=8080))
    with pytest.raises(ValueError, match="max_tensors is -1"):
        Limits(max_tensors=-1)


def test_a_small_file_that_stands_for_much_is_held_to_its_ratio(tmp_path):
    path = tmp_path / "m.terse"
    zeros = CompressedMatrix.compress(np.zeros((4000, 4000), np.float32), "archive")
    nbytes = terse.save({"zeros": zeros}, path)
    assert nbytes < 200
    with pytest.raises(FormatError, match="zeros: 64000000 dense bytes up to here in a file of"):
        terse.open(path, limits=Limits(max_ratio=1000))
    # The first bytes of a file do not count.
    ratio = -(-64_000_000 // (nbytes - 16))
    terse.open(path, limits=Limits(max_ratio=ratio))
    with pytest.raises(FormatError, match="over"):
        terse.open(path, limits=Limits(max_ratio=ratio - 1))


def test_saving_over_an_open_file_leaves_the_reader_the_old_content(tmp_path):
    path = tmp_path / "m.terse"
    old, new = np.arange(50_000.0), -np.arange(50_000.0)
    terse.save({"x": old}, path)
    with terse.open(path) as file:
        terse.save({"x": new}, path)
        np.testing.assert_array_equal(file.get("x"), old)
    np.testing.assert_array_equal(terse.load(path)["x"], new)


def test_threads_may_read_one_file(tmp_path):
    values = {f"m{i}": CompressedMatrix.compress(sparse(seed=i)) for i in range(8)}
    terse.save(values, tmp_path / "m.terse")
    equal: list[bool] = []
    with terse.open(tmp_path / "m.terse") as file:

        def read() -> None:
            for _ in range(50):
                equal.extend(file.get(name) == matrix for name, matrix in values.items())

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert equal == [True] * (4 * 50 * 8)


def test_numpy_alone_is_enough(tmp_path):
    code = """
import sys
sys.modules["torch"] = None
import numpy as np, tersenet.io as io
from tersenet import CompressedMatrix
io.save({"w": CompressedMatrix.compress(np.eye(9, dtype=np.float32)), "b": np.ones(3)}, sys.argv[1])
with io.open(sys.argv[1]) as file:
    assert file.get("w").decompress().trace() == 9 and file.get("b").sum() == 3
io.to_safetensors(sys.argv[1], sys.argv[1] + ".st")
io.from_safetensors(sys.argv[1] + ".st", sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.terse")], check=True)


def test_load_lays_matrices_out_for_the_goal_with_the_same_bits(tmp_path):
    weights = np.random.default_rng(0).integers(0, 3, (40, 60)).astype(np.float32)
    path = tmp_path / "x.terse"
    terse.save({"w": CompressedMatrix.compress(weights), "b": np.arange(3)}, path)
    stored = terse.load(path)["w"]
    for goal in ("size", "speed"):
        loaded = terse.load(path, goal=goal)
        assert loaded["w"] == stored.to(goal=goal)
        np.testing.assert_array_equal(loaded["w"].decompress(), weights)
        np.testing.assert_array_equal(loaded["b"], np.arange(3))
    with pytest.raises(ValueError, match="load: goal is 'fast', expected 'size', 'speed' or None"):
        terse.load(path, goal="fast")


def test_an_empty_array_beyond_numpy_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "x.terse"
    _core.write(str(path), [("vast", "float32", (0, 2**40, 2**40), b"")], [], {})
    with terse.open(path) as file:
        file.verify()
        with pytest.raises(FormatError, match="tensor vast: shape"):
            file.get("vast")


def test_only_regular_files_are_replaced_and_links_and_modes_are_kept(tmp_path):
    pipe, target, link = tmp_path / "pipe", tmp_path / "target", tmp_path / "link"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file"):
        terse.save({}, pipe)
    assert pipe.is_fifo()
    with pytest.raises(IsADirectoryError):
        terse.save({}, tmp_path)
    with pytest.raises(FileNotFoundError):
        terse.save({}, tmp_path / "missing" / "x.terse")
    target.touch(0o600)
    link.symlink_to(target)
    terse.save({"x": np.arange(3)}, link)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600
    assert terse.load(target)["x"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="is the source"):
        terse.to_safetensors(target, link)


def test_of_several_damaged_tensors_the_first_is_named(tmp_path):
    path = tmp_path / "x.terse"
    terse.save({name: np.arange(20_000.0) for name in "abcd"}, path)
    data = bytearray(path.read_bytes())
    for name in (3, 1):
        data[-160_000 * (4 - name) + 80_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"x\.terse: tensor b: data"):
        terse.load(path)
    with terse.open(path) as file, pytest.raises(FormatError, match="tensor d: data"):
        file.values(["d", "a", "b"])


@pytest.mark.parametrize("goal", [None, "size", "speed"])
def test_values_together_are_those_one_by_one(tmp_path, goal):
    rng = np.random.default_rng(0)
    weights = np.where(rng.random((60, 50)) < 0.1, rng.integers(1, 9, (60, 50)), 0)
    matrices = {
        layout: CompressedMatrix.compress(weights.astype(np.float32), layout)
        for layout in ("archive", "coded", "dense")
    }
    named = {**matrices, "plain": rng.random((3, 5))}
    terse.save(named, tmp_path / "x.terse")
    with terse.open(tmp_path / "x.terse") as file:
        found = file.values(["plain", "coded", "archive", "dense"], goal, {"archive", "plain"})
        assert list(found) == ["plain", "coded", "archive", "dense"]
        np.testing.assert_array_equal(found.pop("plain"), named["plain"], strict=True)
        for name, matrix in found.items():
            expected = file.get(name) if goal is None else file.get(name).to(goal=goal)
            if goal is None and name == "archive":
                expected = expected.to("coded")
            assert matrix.to_bytes() == expected.to_bytes()
        with pytest.raises(KeyError, match="nothing"):
            file.values(["plain", "nothing"])


def test_damage_is_said_of_the_file_and_the_tensor(tmp_path):
    path = tmp_path / "x.terse"
    terse.save({"w": np.arange(1000)}, path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with terse.open(path) as file, pytest.raises(FormatError, match=r"x\.terse: tensor w: data"):
        file.get("w")
