"""What the tests of sweeps sweep: a small network that knows handwritten digits.

Functions of a module, as spawned workers need them. With `SWEEP_LOG` set, every evaluation outside
the process `SWEEP_DRIVER` adds a line to that file.
"""

import os
import signal
import time
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from tersenet.demo import digits
from tersenet.sweeping import Data
from tersenet.training import TensorBatches, accuracy, fit


def network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


@cache
def parts():
    return digits()


def make_model():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = network()
    adam = torch.optim.Adam(model.parameters(), lr=5e-3)
    batches = TensorBatches(*parts()[0], batch_size=64, seed=0)
    fit(model, batches, epochs=3, optimizer=adam, loss=F.cross_entropy, seed=0)
    torch.set_num_threads(threads)
    return model


def make_data():
    """Batches of training that are shuffled by a generator of their own, and of validation."""
    train, validation, _ = parts()
    return (
        TensorBatches(*train, batch_size=64, seed=1),
        TensorBatches(*validation, batch_size=100, shuffle=False),
    )


def measured_by(measure):
    training, validation = make_data()
    return Data(training, validation, measure=measure)


def is_driver():
    return os.environ["SWEEP_DRIVER"] == str(os.getpid())


def logged(outputs, targets):
    """Accuracy, slowly and with a line for each batch."""
    with Path(os.environ["SWEEP_LOG"]).open("a") as log:
        log.write(f"{os.getpid()}\n")
    time.sleep(float(os.environ.get("SWEEP_SLEEP_S", "0")))
    return accuracy(outputs, targets)


def killed_once(outputs, targets):
    """Accuracy; the first worker that computes it is killed."""
    if not is_driver():
        try:
            Path(os.environ["SWEEP_LOG"]).touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return accuracy(outputs, targets)


def killed_always(outputs, targets):
    """Accuracy, but in the driver only."""
    if not is_driver():
        os.kill(os.getpid(), signal.SIGKILL)
    return accuracy(outputs, targets)


def refused(outputs, targets):
    """Accuracy, but of the dense model only, which is the first to be measured."""
    if Path(os.environ["SWEEP_LOG"]).exists():
        raise ArithmeticError("no more of this")
    return logged(outputs, targets)


def on_two_nodes(outputs, targets):
    """Accuracy; a worker marks its Ray node, and waits for both to be marked and one to be killed.

    A trial on the node that is to be killed waits for that, and so dies with it.
    """
    import ray

    marks = Path(os.environ["SWEEP_LOG"])
    if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        (marks / ray.get_runtime_context().get_node_id()).touch()
        end = time.monotonic() + 120
        while not (marks / "killed").exists() and time.monotonic() < end:
            time.sleep(0.02)
    return accuracy(outputs, targets)
