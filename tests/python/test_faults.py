"""What may happen to a process: killed while it saves, disks that fill, files that change, Ctrl-C.

Savers are really killed, disks are really full, signals are really sent. Each test runs a program
of its own, so that nothing that goes wrong there reaches the tests.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from arrays import sparse

import tersenet
from tersenet import CompressedMatrix, FormatError, _core
from tersenet import io as terse

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


def run(program: str, *arguments: object, timeout: float = 120) -> str:
    """Run a program to its end, which must be a good one; return what it printed."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_saver_killed_at_any_instant_leaves_the_old_file_or_the_new_one(tmp_path):
    found = run(
        """
        import os, random, signal, sys, time
        import numpy as np
        import tersenet

        path = os.path.join(sys.argv[1], "x.terse")
        values = [np.full(400_000, number, np.float64) for number in range(2)]
        tersenet.save({"x": values[0]}, path)
        start = time.perf_counter()
        for number in range(8):
            tersenet.save({"x": values[number % 2]}, path)
        each = (time.perf_counter() - start) / 8
        random.seed(0)
        found = set()
        for _ in range(50):
            child = os.fork()
            if child == 0:
                for number in range(10_000):
                    tersenet.save({"x": values[number % 2]}, path)
                os._exit(1)
            time.sleep(random.uniform(0, 4 * each))
            os.kill(child, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            with tersenet.open(path) as file:
                file.verify()
                x = file.get("x")
            assert (x == x[0]).all() and x.shape == values[0].shape
            found.add(int(x[0]))
            # What a killed saver leaves is beside the file, and named so that it can be told.
            others = set(os.listdir(sys.argv[1])) - {"x.terse"}
            assert all(name.startswith(".tersenet-") for name in others), others
        print(sorted(found))
        """,
        tmp_path,
    )
    assert found == "[0, 1]\n"


def test_a_file_over_the_limit_of_its_size_is_an_oserror_and_the_old_one_stays(tmp_path):
    run(
        """
        import os, resource, sys
        import numpy as np
        import tersenet

        path = os.path.join(sys.argv[1], "x.terse")
        tersenet.save({"x": np.arange(9)}, path)
        before = open(path, "rb").read()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        for goal in (None, "size"):
            try:
                tersenet.save({"x": np.random.default_rng(0).random(500_000)}, path, goal)
            except OSError as error:
                assert path in str(error), error
            else:
                raise AssertionError("no error")
        assert open(path, "rb").read() == before
        assert os.listdir(sys.argv[1]) == ["x.terse"]
        tersenet.save({"x": np.arange(10)}, path)
        assert len(tersenet.load(path)["x"]) == 10
        """,
        tmp_path,
    )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"]
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, *options, folder], check=False).returncode:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_an_oserror_and_the_old_file_stays(small_disk):
    path = small_disk / "x.terse"
    terse.save({"x": np.arange(9)}, path)
    before = path.read_bytes()
    for goal in (None, "size"):
        with pytest.raises(OSError, match=r"saving .*x\.terse: No space left"):
            terse.save({"x": np.random.default_rng(0).random(500_000)}, path, goal)
        assert path.read_bytes() == before
        assert os.listdir(small_disk) == ["x.terse"]
    terse.save({"x": np.arange(10)}, path)
    assert len(terse.load(path)["x"]) == 10


def test_a_file_that_changes_while_open_is_an_error_or_as_it_was(tmp_path):
    path = tmp_path / "x.terse"
    old, new = np.random.default_rng(0).random((2, 50_000))

    def opened():
        terse.save({"x": old}, path)
        return terse.open(path)

    terse.save({"x": new}, tmp_path / "new.terse")
    with opened() as file:
        os.replace(tmp_path / "new.terse", path)
        np.testing.assert_array_equal(file.get("x"), old)
    with opened() as file:
        os.unlink(path)
        np.testing.assert_array_equal(file.get("x"), old)
    with opened() as file:
        os.truncate(path, 1000)
        with pytest.raises(FormatError, match="cut while open"):
            file.get("x")
    with opened() as file:
        size = path.stat().st_size
        path.write_bytes(os.urandom(size))
        with pytest.raises(FormatError, match="checksum"):
            file.get("x")


def test_eight_threads_load_and_multiply_a_thousand_times_with_the_same_bits(tmp_path):
    path = tmp_path / "x.terse"
    matrix = CompressedMatrix.compress(sparse(40, 60))
    terse.save({"w": matrix, "b": np.arange(9.0)}, path)
    x = np.random.default_rng(1).standard_normal((3, 60)).astype(np.float32)
    expected = matrix.matmul(x, threads=1).tobytes()

    with terse.open(path) as file:

        def work(number: int) -> bool:
            for turn in range(1000):
                found = file.get("w")
                threads = 1 + (number + turn) % 2
                if found.matmul(x, threads=threads).tobytes() != expected:
                    return False
                if matrix.matmul(x, threads=threads).tobytes() != expected:
                    return False
                if file.get("b").tobytes() != np.arange(9.0).tobytes():
                    return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_of_a_dataloader_multiply(tmp_path, method):
    script = tmp_path / "work.py"
    script.write_text(
        textwrap.dedent(f"""
        import numpy as np, torch, tersenet
        from torch.utils.data import DataLoader, Dataset

        class Products(Dataset):
            def __init__(self, matrix):
                self.matrix = matrix

            def __len__(self):
                return 8

            def __getitem__(self, number):
                x = np.full((4, 600), number, np.float32)
                return self.matrix.matmul(x, threads=2)

        if __name__ == "__main__":
            w = np.random.default_rng(0).integers(0, 4, (600, 600)).astype(np.float32)
            products = Products(tersenet.CompressedMatrix.compress(w))
            expected = [products[number] for number in range(8)]
            loader = DataLoader(
                products, batch_size=None, num_workers=2, multiprocessing_context={method!r}
            )
            for _ in range(2):
                for found, right in zip(loader, expected, strict=True):
                    assert np.array_equal(found, right)
        """)
    )
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr


def test_ten_thousand_loads_leave_no_memory_behind(tmp_path):
    path = tmp_path / "x.terse"
    values = {"w": CompressedMatrix.compress(sparse(40, 60)), "b": np.arange(9.0)}
    values["a"] = values["w"].to("archive")
    terse.save(values, path, "size")
    grown = run(
        """
        import gc, sys
        import tersenet

        def resident():
            gc.collect()
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096

        def load():
            for _ in range(2000):
                values = tersenet.load(sys.argv[1])
                values["w"].matvec([0] * 60)

        load()
        sizes = [resident()]
        for _ in range(5):
            load()
            sizes.append(resident())
        print(sizes[-1] - sizes[0], min(b - a for a, b in zip(sizes, sizes[1:])))
        """,
        path,
    )
    total, each = map(int, grown.split())
    assert total < 10_000 * 1000, f"{total} bytes for 10,000 loads"
    # What every load leaves grows each time; what the allocator takes once does not.
    assert each < 2_000 * 100, f"{each} bytes for 2,000 loads"


@pytest.mark.parametrize("error", [tersenet.FormatError("x"), tersenet.InternalError("x")])
def test_exceptions_travel(error):
    stream = io.BytesIO()
    torch.save(error, stream)
    stream.seek(0)
    for again in (
        pickle.loads(pickle.dumps(error)),
        copy.deepcopy(error),
        torch.load(stream, weights_only=False),
    ):
        assert (type(again), again.args) == (type(error), error.args)
    assert isinstance(tersenet.FormatError(""), ValueError)
    assert isinstance(tersenet.InternalError(""), RuntimeError)


# What takes long, and what is there before it; 4096 x 4096 of many values, a few seconds each.
LONG = {
    "compress to cla": ("", "CompressedMatrix.compress(weights, 'cla')"),
    "compress to archive": ("", "CompressedMatrix.compress(weights, 'archive')"),
    "compress for size": ("", "CompressedMatrix.compress(weights)"),
    "load an archive": (
        "tersenet.save({'w': CompressedMatrix.compress(weights[:2500], 'archive')}, path)",
        "tersenet.load(path)",
    ),
    "multiply a batch": (
        "matrix = CompressedMatrix.compress(weights, 'hac'); x = np.ones((4000, 4096), np.float32)",
        "matrix.matmul(x)",
    ),
    "save": (
        "plain = {str(i): np.random.default_rng(i).random(1 << 23) for i in range(6)}",
        "tersenet.save(plain, path, 'size')",
    ),
}


@pytest.mark.parametrize("what", LONG)
def test_ctrl_c_ends_a_long_call_and_the_next_one_works(tmp_path, what):
    path = tmp_path / "x.terse"
    terse.save({"old": np.arange(3)}, path)
    before, call = LONG[what]
    program = f"""
        import os, signal, sys, threading, time
        import numpy as np
        import tersenet
        from tersenet import CompressedMatrix

        path = sys.argv[1]
        rng = np.random.default_rng(0)
        weights = rng.integers(0, 500, (4096, 4096)).astype(np.float32)
        weights[rng.random(weights.shape) < 0.5] = 0
        {before}
        stem = os.path.getmtime(path), os.path.getsize(path)
        sent = []

        def interrupt():
            time.sleep(0.15)
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            {call}
        except KeyboardInterrupt:
            took = time.perf_counter() - sent[0]
        else:
            raise AssertionError("it was over before")
        assert stem == (os.path.getmtime(path), os.path.getsize(path))
        assert os.listdir(os.path.dirname(path)) == ["x.terse"]
        small = CompressedMatrix.compress(weights[:50, :50])
        assert (small.decompress() == weights[:50, :50]).all()
        print(took)
        """
    took = float(run(program, path))
    # Measured on an idle machine in benches/faults.py; here only that it does not wait for the end.
    assert took < 2


def test_a_panic_is_an_exception_that_asks_to_be_reported():
    with pytest.raises(tersenet.InternalError, match="tersenet: here: please report this"):
        _core._panic("here")
    assert issubclass(tersenet.InternalError, Exception)


def test_outputs_that_cannot_be_written_to_are_named(tmp_path):
    model = tersenet.compress(torch.nn.Sequential(torch.nn.Linear(8, 8)))
    tersenet.export(model, torch.ones(2, 8), tmp_path / "n.terse")
    network = tersenet.Network.load(tmp_path / "n.terse")
    x = np.ones((2, 8), np.float32)
    frozen = np.zeros((2, 8), np.float32)
    frozen.flags.writeable = False
    both = np.zeros((3, 8), np.float32)
    expected = network.run(x)
    for out in (frozen, np.zeros((8, 2), np.float32).T, np.zeros((4, 8), np.float32)[::2]):
        before = out.copy()
        with pytest.raises(ValueError, match="out: "):
            network.run(x, out=out)
        assert np.array_equal(out, before)
    with pytest.raises(ValueError, match="out: "):
        network.run(both[:2], out=both[1:])
    assert np.array_equal(network.run(x, out=both[1:]), expected)


def test_arrays_of_any_strides_and_order_are_multiplied_alike():
    matrix = CompressedMatrix.compress(sparse(40, 60))
    x = np.random.default_rng(1).standard_normal((6, 120)).astype(np.float32)
    frozen = x[:, :60].copy()
    frozen.flags.writeable = False
    misaligned = np.frombuffer(b"\0" + x[:, :60].tobytes(), np.uint8)[1:].view(np.float32)
    for given in (
        x[:, ::2],
        x[:, ::-2],
        x[::-1, 30:90],
        np.asfortranarray(x[:, :60]),
        np.broadcast_to(x[0, :60], (6, 60)),
        x[:, :60].astype(">f4"),
        frozen,
        misaligned.reshape(6, 60),
        x[:0, :60],
    ):
        plain = np.ascontiguousarray(given, np.float32).copy()
        assert matrix.matmul(given).tobytes() == matrix.matmul(plain).tobytes()


def test_a_matrix_of_over_2_to_the_31_entries_is_held_and_multiplied():
    # Zeros that nobody touches take no memory.
    nrows, ncols = 46_400, 46_400
    weights = np.zeros((nrows, ncols), np.float32)
    assert weights.size > 2**31
    places = [(0, 0), (1, ncols - 1), (nrows - 2, 5), (nrows - 1, ncols - 1)]
    for number, place in enumerate(places):
        weights[place] = number + 1
    matrix = CompressedMatrix.compress(weights, "packed")
    assert matrix.nnz == 4
    y = matrix.matvec(np.ones(ncols, np.float32))
    assert y[[0, 1, -2, -1]].tolist() == [1, 2, 3, 4]
    assert np.count_nonzero(y) == 4
    assert matrix.rows([nrows - 1])[0, -1] == 4
