"""Arrays in files: as NumPy reads and writes them, never a pickle, never half a file."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tersenet import FormatError, array_files

DTYPES = st.sampled_from(["<f4", ">f4", "<f8", "<f2", "|u1", "<i8", ">i4", "|b1"])
ARRAYS = npst.arrays(DTYPES, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@IN_ONE_FOLDER
@given(array=ARRAYS, is_fortran=st.booleans())
def test_load_reads_what_numpy_writes(tmp_path, array, is_fortran):
    np.save(tmp_path / "x.npy", array.copy("F" if is_fortran else "C"))
    assert same(array_files.load(tmp_path / "x.npy"), array)


@IN_ONE_FOLDER
@given(arrays=st.lists(ARRAYS, min_size=1, max_size=3))
def test_numpy_reads_what_save_writes(tmp_path, arrays):
    paths = [tmp_path / f"{number}.npy" for number in range(len(arrays))]
    array_files.save(paths, arrays)
    array_files.save([tmp_path / "all.npz"], arrays)
    with np.load(tmp_path / "all.npz") as archive:
        for number, (path, array) in enumerate(zip(paths, arrays, strict=True)):
            assert same(np.load(path), array)
            assert same(archive[f"arr_{number}"], array)
    loaded = array_files.load_archive(tmp_path / "all.npz")
    assert list(loaded) == [f"arr_{number}" for number in range(len(arrays))]
    assert all(same(a, b) for a, b in zip(loaded.values(), arrays, strict=True))


def test_damage_is_an_error_or_another_array(tmp_path):
    """Every byte of the header changed in some ways, and every beginning of the file."""
    path = tmp_path / "x.npy"
    np.save(path, np.arange(6, dtype=np.float32).reshape(2, 3))
    data = path.read_bytes()
    changed = [data[:size] for size in range(len(data))]
    changed += [
        data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]
        for place in range(128)
        for mask in (1, 2, 8, 16, 64, 255)
    ]
    refused = 0
    for bytes_ in changed:
        path.write_bytes(bytes_)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy's, of a header as Python 2 wrote it
                assert isinstance(array_files.load(path), np.ndarray)
        except FormatError as error:
            assert str(error).startswith(f"{path}: no array of numbers")
            refused += 1
    assert refused > len(data)


def test_a_damaged_archive_is_an_error(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.arange(6.0), y=np.ones((2, 2)))
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError, match=r"x\.npz: "):
            array_files.load_archive(path)
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        try:
            array_files.load_archive(path)
        except FormatError as error:
            assert str(error).startswith(f"{path}: ")


def test_objects_are_refused(tmp_path):
    objects = np.array([None, "a"], dtype=object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=objects, allow_pickle=True)
    with pytest.raises(FormatError, match=r"x\.npy: .*Object arrays"):
        array_files.load(tmp_path / "x.npy")
    with pytest.raises(FormatError, match=r"x\.npz: x\.npy: .*Object arrays"):
        array_files.load_archive(tmp_path / "x.npz")


def test_a_header_that_asks_for_more_than_there_is_is_an_error(tmp_path):
    with (tmp_path / "x.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 50, 4)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(FormatError, match=r"x\.npy: "):
        array_files.load(tmp_path / "x.npy")


@pytest.mark.parametrize("names", [["a.npy", "b.npy"], ["a.npz"]])
def test_after_an_error_every_old_file_is_there(tmp_path, names):
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_text("old")
    arrays = [np.ones(100_000), np.array([None], dtype=object)]
    with pytest.raises(ValueError, match="allow_pickle"):
        array_files.save(paths, arrays)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all(path.read_text() == "old" for path in paths)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    for name in ("missing/x.npy", "folder.npy"):
        with pytest.raises(OSError) as caught:
            array_files.save([tmp_path / "a.npy", tmp_path / name], [np.ones(1), np.ones(1)])
        assert caught.value.filename == str(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.npy"]


@pytest.mark.parametrize("name", ["x", "x.txt", "npy", ".npy"])
def test_another_ending_is_an_error(name):
    with pytest.raises(ValueError, match=r"expected \.npy or \.npz"):
        array_files.ending(name)
    assert array_files.ending("a/B.NPY") == ".npy"
