"""Sweeps of a real network: what plain calls find, whoever runs the trials and whatever dies."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import digits
import numpy as np
import pytest
import torch
from digits import make_data, make_model, measured_by
from torch import nn
from torch.nn import functional as F
from underway import kill_underway, nfinished, until

import tersenet
from tersenet import Plan, Rule, compress, prune, quantize, save, sweep
from tersenet.sweeping import Results
from tersenet.training import TensorBatches, accuracy, evaluate, fit

SPACE = {
    "layers": {
        "fc:*": {"sparsity": [0.6, 0.9], "quantizer": "cws", "k": [4, 8]},
        "conv:*": {"sparsity": 0.3, "quantizer": "uq", "k": 8},
    },
    "seed": 3,
    "codebook_scope": ["layer", "kind"],
}


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def serial(model):
    return sweep(lambda: model, make_data(), SPACE, workers=0)


def numbers(trial):
    return trial.nbytes, trial.accuracy


def same(found, expected):
    return list(found) == list(expected) and [t.layers for t in found] == [
        t.layers for t in expected
    ]


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_trial_is_what_plain_calls_give(model, serial, one_thread, tmp_path):
    cases = [(s, k, scope) for s in (0.6, 0.9) for k in (4, 8) for scope in ("layer", "kind")]
    assert len(serial) == len(cases)
    for trial, (sparsity, k, scope) in zip(serial, cases, strict=True):
        fc = Rule(sparsity=sparsity, quantizer="cws", k=k)
        conv = Rule(sparsity=0.3, quantizer="uq", k=8)
        plan = Plan({"fc:*": fc, "conv:*": conv}, seed=3, codebook_scope=scope, goal="size")
        assert trial.plan == plan
        small = compress(model, plan)
        path = tmp_path / "by_hand.terse"
        save(small, path, goal="size")
        expected = evaluate(small, make_data()[1], accuracy)
        assert numbers(trial) == (path.stat().st_size, expected)
        sizes = {"0": 72, "4": 32 * 128, "6": 320}
        kept = sum(int(small[int(name)].dense_weight().count_nonzero()) for name in sizes)
        assert trial.density == kept / sum(sizes.values())
        assert trial.bits_per_weight == 8 * trial.nbytes / sum(sizes.values())
        with tersenet.open(path) as file:
            stored = {name: file.info(f"{name}.weight") for name in sizes}
        assert [layer.name for layer in trial.layers] == list(sizes)
        for layer in trial.layers:
            info = stored[layer.name]
            assert (layer.nbytes, layer.layout) == (info["nbytes"], info.get("layout", "plain"))
            assert layer.bits_per_weight == 8 * layer.nbytes / sizes[layer.name]


def test_the_dense_model_is_measured_and_left_alone(model, serial, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = sweep(lambda: model, make_data(), SPACE | {"codebook_scope": "layer"}, workers=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert again.dense == serial.dense
    assert serial.dense.nbytes == save(model, tmp_path / "dense.terse")
    assert serial.dense.accuracy == evaluate(model, make_data()[1], accuracy) > 0.8
    best = max(trial.accuracy for trial in serial)
    drop = serial.dense.accuracy - best
    assert serial.choose(max_drop=drop + 1e-9).accuracy == best


def test_training_keeps_masks_and_values_and_is_fit_with_adam(model, one_thread, tmp_path):
    space = {
        "layers": {"fc:*": {"sparsity": 0.9, "quantizer": "cws", "k": 8}},
        "training": {"after_pruning": [0, 1], "after_quantizing": [1, 2], "lr": 2e-3},
    }
    found = sweep(lambda: model, make_data(), space, workers=0)
    plan = Plan.of("fc:*", sparsity=0.9, quantizer="cws", k=8)
    for trial, epochs in zip(found, [(0, 1), (0, 2), (1, 1), (1, 2)], strict=True):
        batches, validation = make_data()
        small = make_model()
        prune(small, plan)
        if epochs[0]:
            adam = torch.optim.Adam(small.parameters(), lr=2e-3)
            fit(small, batches, epochs=epochs[0], optimizer=adam, loss=F.cross_entropy, seed=0)
        quantize(small, plan)
        adam = torch.optim.Adam(small.parameters(), lr=2e-3)
        fit(small, batches, epochs=epochs[1], optimizer=adam, loss=F.cross_entropy, seed=0)
        small = compress(small)
        path = tmp_path / "by_hand.terse"
        save(small, path, goal="size")
        assert numbers(trial) == (path.stat().st_size, evaluate(small, validation, accuracy))
        fc = next(layer for layer in trial.layers if layer.name == "4")
        assert fc.density == 410 / 4096 and fc.k <= 8
    untrained = evaluate(compress(model, plan), make_data()[1], accuracy)
    assert found[3].accuracy > untrained


def test_a_named_layout_is_what_the_file_has(model, one_thread, tmp_path):
    rule = {"sparsity": 0.8, "quantizer": "cws", "k": 4, "layout": ["auto", "hac", "packed"]}
    found = sweep(lambda: model, make_data(), {"layers": {"fc:*": rule}}, workers=0)
    for trial, layout in zip(found, rule["layout"], strict=True):
        plan = Plan.of("fc:*", sparsity=0.8, quantizer="cws", k=4, layout=layout)
        path = tmp_path / "by_hand.terse"
        save(compress(model, plan), path, goal="size" if layout == "auto" else None)
        assert trial.nbytes == path.stat().st_size
        layouts = {layer.name: layer.layout for layer in trial.layers}
        assert layout in ("auto", layouts["4"])
    assert len({trial.accuracy for trial in found}) == 1


class Shuffled:
    """Batches that depend on how often they were iterated before."""

    def __init__(self):
        self.turn = 0
        self.inputs = torch.arange(12.0).reshape(6, 2)

    def __iter__(self):
        self.turn += 1
        yield self.inputs + self.turn, torch.arange(6) % 2


def test_each_trial_gets_the_data_as_it_was_at_first():
    torch.manual_seed(0)
    linear, data = nn.Linear(2, 2), (Shuffled(), Shuffled())
    space = {
        "layers": {"*": {"sparsity": [0.0, 0.25, 0.5], "quantizer": "uq", "k": 3}},
        "training": {"after_quantizing": 2},
    }
    together = sweep(lambda: linear, data, space, workers=0)
    assert (data[0].turn, data[1].turn) == (0, 0)
    for number, sparsity in enumerate([0.0, 0.25, 0.5]):
        space["layers"]["*"]["sparsity"] = sparsity
        (alone,) = sweep(lambda: linear, data, space, workers=0)
        assert numbers(alone) == numbers(together[number])


def test_results_are_taken_up_and_never_done_again(model, serial, tmp_path, monkeypatch):
    log, path = tmp_path / "log", tmp_path / "r.sqlite"
    monkeypatch.setenv("SWEEP_LOG", str(log))

    def evaluations():
        return len(log.read_text().split())

    ticks = []
    data = measured_by(digits.logged)
    nbatches = len(make_data()[1])
    first = sweep(
        lambda: model, data, SPACE, workers=0, results=path, progress=lambda *a: ticks.append(a)
    )
    assert evaluations() == nbatches * (1 + len(serial))
    assert ticks == [("trials", n, 8) for n in range(9)]
    assert same(first, serial)
    ticks.clear()
    again = sweep(
        lambda: model, data, SPACE, workers=0, results=path, progress=lambda *a: ticks.append(a)
    )
    assert evaluations() == nbatches * (1 + len(serial))
    assert ticks == [("trials", 8, 8)]
    assert same(again, first) and same(Results.open(path), first)
    assert [t.seconds for t in again] == [t.seconds for t in first]
    train, validation = make_data()
    other = make_model()
    with torch.no_grad():
        other[6].bias[0] += 1e-6
    for arguments, words in [
        ((lambda: other, data, SPACE), "another model"),
        ((lambda: model, (train, validation), SPACE), "other data"),
        ((lambda: model, data, SPACE | {"seed": 4}), "another space"),
    ]:
        with pytest.raises(ValueError, match=f"has results of {words}, expected those of this"):
            sweep(*arguments, workers=0, results=path)


def test_threads_of_one_process_find_the_same(model, serial):
    with ThreadPoolExecutor(3) as executor:
        assert same(sweep(lambda: model, make_data(), SPACE, executor), serial)


def test_a_killed_process_is_replaced_and_its_trial_tried_again(
    model, serial, tmp_path, monkeypatch
):
    monkeypatch.setenv("SWEEP_LOG", str(tmp_path / "killed"))
    monkeypatch.setenv("SWEEP_DRIVER", str(os.getpid()))
    found = sweep(lambda: model, measured_by(digits.killed_once), SPACE, workers=2)
    assert (tmp_path / "killed").exists()
    assert same(found, serial)
    assert list(found.front()) == list(serial.front())


def test_a_trial_that_always_kills_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEP_DRIVER", str(os.getpid()))
    path = tmp_path / "r.sqlite"
    with pytest.raises(
        RuntimeError, match=r"killed, times 1, expected at most 0.*trial 0: fc:\*.sparsity = 0\.6, "
    ):
        sweep(
            lambda: model,
            measured_by(digits.killed_always),
            SPACE,
            workers=1,
            retries=0,
            results=path,
        )
    assert len(Results.open(path)) == 0


DRIVER = """
    import sys, torch, tersenet
    if __name__ == "__main__":
        model, data, space = torch.load(sys.argv[1], weights_only=False)
        tersenet.sweep(lambda: model, data, space, workers=1, results=sys.argv[2])
"""


def test_a_killed_sweep_goes_on_where_it_was(model, serial, tmp_path, monkeypatch):
    log, path, program = tmp_path / "log", tmp_path / "r.sqlite", tmp_path / "driver.py"
    program.write_text(textwrap.dedent(DRIVER))
    torch.save((model, measured_by(digits.logged), SPACE), tmp_path / "swept.pt")
    monkeypatch.setenv("SWEEP_LOG", str(log))
    paths = [str(Path(__file__).parent), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "SWEEP_SLEEP_S": "0.1"}
    command = [sys.executable, program, tmp_path / "swept.pt", path]
    kill_underway(command, environment, path, log)
    finished = Results.open(path)
    assert 2 <= len(finished) < len(serial)
    assert all(trial == serial[trial.number] for trial in finished)
    log.write_text("")
    data = measured_by(digits.logged)
    found = sweep(lambda: model, data, SPACE, workers=0, results=path)
    nbatches = len(make_data()[1])
    assert len(log.read_text().split()) == nbatches * (len(serial) - len(finished))
    assert same(found, serial)
    assert list(found.front()) == list(serial.front())


def test_ctrl_c_is_put_off_whichever_thread_it_reaches():
    """Where this thread blocks it another one takes it, and Python interrupts this one all the same."""
    code = """
        import os, signal, threading, time
        from tersenet.sweeping.running import _uninterrupted
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        is_over = False
        try:
            with _uninterrupted():
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(100):
                    time.sleep(0.001)
                is_over = True
            print("not interrupted")
        except KeyboardInterrupt:
            print("interrupted", is_over)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.stdout == "interrupted True\n", done.stderr


def test_ctrl_c_ends_a_sweep_in_one_line_and_it_goes_on_later(tmp_path):
    """In a terminal it reaches workers too, also those that only begin."""
    shutil.copy(Path(digits.__file__), tmp_path)
    path, space = tmp_path / "space.sqlite", tmp_path / "space.toml"
    text = """
        [model]
        function = "digits:make_model"
        [data]
        function = "digits:make_data"
        [layers."fc:*"]
        sparsity = [0.5, 0.6, 0.7, 0.8, 0.9]
        quantizer = ["cws", "uq"]
        k = [4, 8, 16, 32]
    """
    space.write_text(textwrap.dedent(text))
    command = [sys.executable, "-m", "tersenet.cli", "sweep", "space.toml", "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def swept(stop):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        driver = subprocess.Popen(
            command, cwd=tmp_path, env=environment, start_new_session=True, **streams
        )
        try:
            until(lambda: driver.poll() is not None or stop(driver.pid))
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGINT)
            shown, err = driver.communicate(timeout=120)
        finally:
            driver.kill()
        assert "Traceback" not in err, err
        return driver.returncode, shown, err

    def has_workers(pid):
        """Two, and what multiprocessing starts beside them; they load torch, for a second or two."""
        return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) > 2

    status, _, err = swept(has_workers)
    assert (status, err.splitlines()[-1]) == (2, "tersenet: interrupted")
    before = nfinished(path)
    status, _, err = swept(lambda _: nfinished(path) > before)
    assert (status, err.splitlines()[-1]) == (2, "tersenet: interrupted")
    assert before < nfinished(path) < 40
    status, _, _ = swept(lambda _: False)
    assert status == 0
    assert nfinished(path) == 40


def test_a_full_disk_is_one_error_and_the_sweep_goes_on_later(model, tmp_path):
    path = tmp_path / "r.sqlite"
    space = {"layers": {"fc:*": {"sparsity": np.linspace(0.5, 0.9, 30), "quantizer": "uq"}}}
    space["layers"]["fc:*"] |= {"k": 4}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    done = []

    def fill(what, ndone, total):
        done.append(ndone)
        if ndone == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))

    try:
        with pytest.raises(OSError, match=r"results.*r\.sqlite"):
            sweep(lambda: model, make_data(), space, workers=0, results=path, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = Results.open(path)
    assert 3 <= len(kept) == done[-1] < 30
    found = sweep(lambda: model, make_data(), space, workers=0, results=path)
    assert same(found, sweep(lambda: model, make_data(), space, workers=0))
    assert [t.seconds for t in found[: len(kept)]] == [t.seconds for t in kept]


SEARCHED = {
    "layers": {
        "fc:*": {
            "sparsity": {"low": 0.3, "high": 0.95},
            "quantizer": ["cws", "uq"],
            "k": {"low": 2, "high": 32, "log": True},
        },
        "conv:*": {"sparsity": [0.0, 0.3, 0.6], "quantizer": "uq", "k": 8},
    }
}


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii", "random"])
def test_a_search_finds_the_same_interrupted_extended_and_in_parallel(model, tmp_path, sampler):
    pytest.importorskip("optuna", reason="needs pip install 'tersenet[search]'")

    def space(trials):
        search = {"trials": trials, "sampler": sampler, "seed": 5, "batch": 5}
        return SEARCHED | {"search": search}

    whole = sweep(lambda: model, make_data(), space(15), workers=0)
    assert 10 < len(whole) <= 15
    for trial in whole:
        s = trial.settings
        assert 0.3 <= s["fc:*.sparsity"] <= 0.95 and s["conv:*.sparsity"] in (0.0, 0.3, 0.6)
        assert s["fc:*.quantizer"] in ("cws", "uq") and type(s["fc:*.k"]) is int
        assert 2 <= s["fc:*.k"] <= 32
    assert len({trial.settings["fc:*.sparsity"] for trial in whole}) == len(whole)
    path = tmp_path / "r.sqlite"
    part = sweep(lambda: model, make_data(), space(7), workers=0, results=path)
    assert same(part, whole[:7])
    with ThreadPoolExecutor(3) as executor:
        more = sweep(lambda: model, make_data(), space(15), executor, results=path)
    assert same(more, whole)
    assert [t.seconds for t in more[:7]] == [t.seconds for t in part]
    with pytest.raises(ValueError, match="has results of another space"):
        sweep(lambda: model, make_data(), SPACE, workers=0, results=path)


def test_what_was_proposed_before_is_not_done_again(model, tmp_path, monkeypatch):
    pytest.importorskip("optuna", reason="needs pip install 'tersenet[search]'")
    monkeypatch.setenv("SWEEP_LOG", str(tmp_path / "log"))
    rule = {"sparsity": [0.5, 0.8], "quantizer": "uq", "k": [2, 4]}
    space = {"layers": {"fc:*": rule}, "search": {"trials": 12, "batch": 3}}
    ticks = []
    found = sweep(
        lambda: model,
        measured_by(digits.logged),
        space,
        workers=0,
        progress=lambda *a: ticks.append(a[1:]),
    )
    assert len(found) <= 4
    evaluations = len((tmp_path / "log").read_text().split())
    assert evaluations == len(make_data()[1]) * (1 + len(found))
    assert ticks[-1] == (12, 12)


def test_dask_runs_a_sweep_by_its_own_executor(model, serial):
    distributed = pytest.importorskip("distributed", reason="needs pip install distributed")
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    with distributed.Client(**options) as client, client.get_executor() as executor:
        assert same(sweep(lambda: model, make_data(), SPACE, executor), serial)


def test_an_error_of_a_trial_says_which_and_keeps_the_others(model, tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEP_LOG", str(tmp_path / "log"))
    _, validation = make_data()
    one = [next(iter(validation))]
    data = digits.Data(None, one, measure=digits.refused)
    with pytest.raises(ArithmeticError, match="no more of this") as caught:
        sweep(lambda: model, data, SPACE, workers=0)
    assert caught.value.__notes__[0].startswith("trial 0: fc:*.sparsity = 0.6, ")
    (tmp_path / "log").unlink()
    with (
        ThreadPoolExecutor(2) as executor,
        pytest.raises(ArithmeticError, match="no more of this") as caught,
    ):
        sweep(lambda: model, data, SPACE, executor)
    # Either of the two that run side by side may fail first.
    assert caught.value.__notes__[0].startswith(("trial 0: fc:*.spars", "trial 1: fc:*.spars"))


def unscored(outputs, targets):
    return float("nan")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"space": {"layers": {"fc_1": {"sparsity": 0.5}}}}, {}, "pattern 'fc_1' matches no layer"),
        (
            {"space": {"layers": {"*": {"k": 3}}}},
            {},
            "layer '0' gets k or lam alone, expected a qu",
        ),
        (
            {"space": {"layers": {"*": {"layout": "hac", "coder": ["auto", "tans"]}}}},
            {},
            "coder: tans for layout hac, expected huffman",
        ),
        (
            {"space": SPACE | {"training": {"after_pruning": [0, 1]}}, "data": (None, [])},
            {},
            "the space trains and data's training is None, expected batches",
        ),
        ({"data": None}, {}, r"data is NoneType, expected \(training, validation\)"),
        ({"data": (None, None)}, {}, "data's validation is NoneType, expected batches to iterate"),
        ({"data": (None, iter([]))}, {}, "validation is list_iterator, which ends for good"),
        ({"data": (None, [])}, {}, "evaluate: no examples"),
        ({"data": (None, [object()])}, {}, "a batch of data's validation holds object, expected"),
        (
            {"data": digits.Data(None, [], measure=lambda a, b: 0.0)},
            {},
            "the data cannot be pickled, as workers need: .*lambda",
        ),
        ({"data": digits.Data(None, make_data()[1], measure=unscored)}, {}, "the measure gave nan"),
        (
            {"model": lambda: nn.Linear(3, 3, device="meta")},
            {},
            "weight is on meta, expected a mod",
        ),
        ({}, {"workers": -1}, "workers is -1, expected an integer of at least 0"),
        ({}, {"retries": 1.5}, r"retries is 1\.5, expected an integer of at least 0"),
        ({}, {"workers": 2, "executor": object()}, "workers is 2 with an executor, expected one"),
    ],
)
def test_what_cannot_be_swept_is_one_error(model, arguments, options, message):
    given = {"model": lambda: model, "data": make_data(), "space": SPACE} | arguments
    options = options if options else {"workers": 0}
    with pytest.raises(ValueError, match=message):
        sweep(given["model"], given["data"], given["space"], **options)


def test_a_function_that_gives_no_model_is_an_error():
    with pytest.raises(TypeError, match="model_fn gave NoneType, expected a model"):
        sweep(lambda: None, make_data(), SPACE, workers=0)


def test_without_optuna_the_error_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'tersenet\[search\]'"):
        sweep(lambda: model, make_data(), SEARCHED | {"search": {"trials": 1}}, workers=0)


def test_batches_of_any_kind_have_a_digest_of_every_value():
    from tersenet.sweeping.work import Work

    def digest(batches):
        return Work(nn.Linear(1, 1), digits.Data(None, batches)).data_digest(trains=False)

    tensor = torch.arange(6.0)
    batches = [(tensor, [np.float32([1, 2]), {"a": 1, "b": None}])]
    same = [(tensor.clone(), [np.float32([1, 2]), {"a": 1, "b": None}])]
    assert digest(batches) == digest(same)
    others = [
        [(tensor.double(), [np.float32([1, 2]), {"a": 1, "b": None}])],
        [(tensor.reshape(2, 3), [np.float32([1, 2]), {"a": 1, "b": None}])],
        [(tensor, [np.float32([1, 3]), {"a": 1, "b": None}])],
        [(tensor, [np.float64([1, 2]), {"a": 1, "b": None}])],
        [(tensor, [np.float32([1, 2]), {"a": 2, "b": None}])],
        [(tensor, [np.float32([1, 2]), {"a": 1, "c": None}])],
        [(tensor, (np.float32([1, 2]),), {"a": 1, "b": None})],
        batches * 2,
        TensorBatches(torch.ones(3), torch.ones(3), batch_size=2),
    ]
    found = {digest(batches), *map(digest, others)}
    assert len(found) == 1 + len(others)
