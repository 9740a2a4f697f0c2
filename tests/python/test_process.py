"""Threads, forks and worker processes: the same bits, no hang, the interpreter free meanwhile."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tersenet


def sparse(nrows, ncols, density, seed=0):
    rng = np.random.default_rng(seed)
    codebook = np.sort(rng.standard_normal(32)).astype(np.float32)
    weights = codebook[rng.integers(0, 32, (nrows, ncols))]
    weights[rng.random((nrows, ncols)) >= density] = 0
    return weights


@pytest.mark.parametrize("layout", tersenet.LAYOUTS)
def test_eight_threads_on_one_matrix_get_the_same_bits(layout):
    matrix = tersenet.CompressedMatrix.compress(sparse(500, 300, 0.2), layout)
    x = np.random.default_rng(1).standard_normal((40, 300)).astype(np.float32)
    expected = matrix.matmul(x, threads=1)
    vector = matrix.matvec(x[0], threads=1)

    def work(i):
        return all(
            np.array_equal(matrix.matmul(x, threads=1 + (i + j) % 3), expected)
            and np.array_equal(matrix.matvec(x[0], threads=1 + (i + j) % 3), vector)
            for j in range(20)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_the_interpreter_runs_on_while_the_core_works():
    weights = sparse(4000, 4000, 0.3)
    turns, done = 0, threading.Event()

    def work():
        tersenet.CompressedMatrix.compress(weights)
        done.set()

    thread = threading.Thread(target=work)
    longest, last = 0.0, time.perf_counter()
    thread.start()
    while not done.is_set():
        turns += 1
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    thread.join()
    # With the interpreter locked this loop would turn a few times, before and after the call.
    assert turns > 1000


def run(program, timeout=60, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=timeout,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_after_use_does_not_hang_and_gets_the_same_bits():
    result = run("""
        import os, numpy as np, tersenet
        w = np.random.default_rng(0).integers(0, 4, (2000, 2000)).astype(np.float32)
        matrix = tersenet.CompressedMatrix.compress(w)
        x = np.ones((8, 2000), np.float32)
        expected = matrix.matmul(x, threads=2)
        for _ in range(3):
            child = os.fork()
            if child == 0:
                same = np.array_equal(matrix.matmul(x, threads=2), expected)
                os._exit(0 if same else 1)
            assert os.waitpid(child, 0)[1] == 0
        assert np.array_equal(matrix.matmul(x, threads=2), expected)
    """)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_matrix_travels_to_worker_processes(tmp_path, method):
    script = tmp_path / "work.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing, numpy as np, tersenet

        def product(matrix):
            return matrix.matmul(np.ones((4, 600), np.float32), threads=2)

        if __name__ == "__main__":
            w = np.random.default_rng(0).integers(0, 4, (600, 600)).astype(np.float32)
            matrix = tersenet.CompressedMatrix.compress(w)
            expected = product(matrix)
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                for found in pool.map(product, [matrix] * 4):
                    assert np.array_equal(found, expected)
        """)
    )
    result = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def test_an_unknown_instruction_set_is_an_error_at_import():
    result = run("import tersenet", TERSENET_SIMD="mmx")
    assert result.returncode != 0
    assert "mmx" in result.stderr
    assert "scalar" in result.stderr


def test_numpy_alone_is_enough_for_matrices_and_files():
    result = run("""
        import sys
        for name in ("torch", "typer", "rich", "safetensors", "sklearn", "scipy"):
            sys.modules[name] = None
        import numpy as np, tersenet, tempfile, os
        w = np.eye(30, dtype=np.float32)
        matrix = tersenet.CompressedMatrix.compress(w)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "x.terse")
            tersenet.save({"w": matrix, "b": np.arange(3)}, path)
            with tersenet.open(path) as file:
                assert file.get("w") == matrix
                assert (file.get("b") == np.arange(3)).all()
        str(tersenet.compare(w))
        try:
            tersenet.compress
        except ModuleNotFoundError as error:
            assert "pip install 'tersenet[torch]'" in str(error), error
        else:
            raise AssertionError("no error")
    """)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("simd", ["avx2", "scalar"])
def test_slices_are_laid_out_anew_where_others_are_faster(tmp_path, simd):
    if simd not in tersenet._core.SIMD_AVAILABLE:
        pytest.skip(f"this CPU has no {simd}")
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(96, 80), torch.nn.ReLU(), torch.nn.Linear(80, 40))
    small = tersenet.compress(
        net, tersenet.Plan.of(sparsity=0.8, quantizer="uq", k=16), layout="sell"
    )
    x = torch.randn(20, 96)
    tersenet.save(small, tmp_path / "x.terse")
    np.savez(tmp_path / "x.npz", x=x.numpy(), y=tersenet.decompress(small)(x).detach().numpy())
    result = run(
        f"""
        import numpy as np, torch, tersenet
        folder = {str(tmp_path)!r}
        with tersenet.open(folder + "/x.terse") as file:
            assert file.get("0.weight").layout == "sell"  # as it is stored
        nn = torch.nn
        net = nn.Sequential(nn.Linear(96, 80), nn.ReLU(), nn.Linear(80, 40))
        net = tersenet.load(folder + "/x.terse", net)
        assert {{net[0].matrix.layout, net[2].matrix.layout}} == {{"packed"}}, net
        data = np.load(folder + "/x.npz")
        for batch in (1, 7, 20):
            found = net(torch.from_numpy(data["x"][:batch])).detach().numpy()
            assert np.allclose(found, data["y"][:batch], rtol=1e-5, atol=1e-6)
        """,
        TERSENET_SIMD=simd,
    )
    assert result.returncode == 0, result.stderr
