"""The whole path on real images in a few seconds: `tersenet demo`.

::

    1,797 handwritten digits of 8 x 8 pixels (scikit-learn carries them)
    train a small convolutional network                        ─▶ the dense model
    prune 95 % of its largest layer, 70 % of the others, train the rest
    share 16 values a layer, fine-tune those values
    compress, save, load into a model without weights          ─▶ the model from the file
    export, load the graph with its weights, run without torch ─▶ as small, and faster
    classify the test images with all; only then measure times

Training keeps the state that did best on validation images; the test images are looked at once.
The split is always the same, the seed changes the first weights and the order of the images.
Sizes are of what is really stored: the dense file is a safetensors file of the dense model, and
the weights in memory are those of the model that ran. Times are medians of single calls, in turn: the
dense model in torch's layers, the one from the file in ours between torch's activations, the exported
one by `Network`, whose numbers need no torch between its layers. All of it runs on one thread: the
network is too small to gain from more, and loses much where other work runs beside it.

Source: the images are the test set of Alpaydin and Kaynak 1998, "Optical recognition of handwritten
digits", UCI machine learning repository.
"""

from __future__ import annotations

import copy
import errno
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from tersenet import io
from tersenet.compression import compress, decompress
from tersenet.errors import InternalError
from tersenet.exporting import export
from tersenet.network import Network
from tersenet.parametrization import unparametrize
from tersenet.plan import Plan, Rule
from tersenet.pruning import prune
from tersenet.quantization import codebook_parameters, quantize
from tersenet.reporting import report
from tersenet.training import Callback, State, TensorBatches, accuracy, evaluate, fit

if TYPE_CHECKING:
    from rich.table import Table

    from tersenet._core import Goal

Progress = Callable[[str, int, int], None]
Images = tuple[Tensor, Tensor]

PLAN = Plan(
    {
        "*": Rule(sparsity=0.7, quantizer="cws", k=16),
        "fc1": Rule(sparsity=0.95),
    }
)

_BATCH_SIZE = 64
_BATCHES = (1, 64)
_RUNS = 30
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Side:
    """What one of the models takes: bytes, and milliseconds an image for each batch size."""

    accuracy: float
    file_nbytes: int
    weights_nbytes: int
    ms: dict[int, float]


@dataclass(frozen=True)
class Result:
    """Everything the demo measured.

    `shared_accuracy` is that of the pruned and quantized model before it was compressed, and
    `equal` of `images` test images got the same class from it, from the file as it is stored
    (`compressed`) and from an exported one that `Network` runs (`exported`).
    """

    dense: Side
    compressed: Side
    exported: Side
    shared_accuracy: float
    equal: int
    images: int
    seconds: float


class DigitsNet(nn.Module):
    """Two convolutions and two linear layers, 283,786 weights and biases; x [batch, 1, 8, 8]."""

    def __init__(self) -> None:
        """Make the layers, with torch's initial weights."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 4 * 4, 256)
        self.fc2 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the score of each digit, [batch, 10]."""
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        scores: Tensor = self.fc2(x)
        return scores


def run(
    *,
    seed: int = 0,
    goal: Goal = "size",
    keep: Path | None = None,
    epochs: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Train, prune, quantize, compress, save, load and measure.

    Args:
        seed: of the first weights and the order of the images.
        goal: what the compressed layers are laid out for, "size" or "speed".
        keep: where to leave the compressed file; by default it is deleted.
        epochs: at most this many in each of the three trainings, to be quick.
        progress: called with what is done now, and epochs done and in all.

    Raises:
        ImportError: if scikit-learn is not installed.
        OSError: if the file cannot be written.
    """
    if keep is not None and not keep.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "no such folder to keep the file in", str(keep.parent)
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(seed, goal, keep, epochs, progress)
    finally:
        torch.set_num_threads(threads)


def table(result: Result) -> Table:
    """Return the result as one table for rich."""
    from rich.table import Table

    dense, stored, exported = result.dense, result.compressed, result.exported
    shown = Table(
        title="tersenet demo: handwritten digits",
        caption=f"{result.equal} of {result.images} test images get the same class before and "
        f"after saving; times are medians on one thread, ratios are to dense; all of it took "
        f"{result.seconds:.0f} s",
    )
    shown.add_column("")
    for column in ("dense", "pruned, quantized", "from the file", "by Network"):
        shown.add_column(column, justify="right")
    shown.add_row(
        "test accuracy",
        f"{dense.accuracy:.2%}",
        f"{result.shared_accuracy:.2%}",
        f"{stored.accuracy:.2%}",
        f"{exported.accuracy:.2%}",
    )

    def add_bytes(what: str, nbytes: list[int]) -> list[float]:
        ratios = [nbytes[0] / n for n in nbytes[1:]]
        cells = [f"{n:,} ({r:.1f} x)" for n, r in zip(nbytes[1:], ratios, strict=True)]
        shown.add_row(what, f"{nbytes[0]:,}", "", *cells)
        return ratios

    sides = (dense, stored, exported)
    add_bytes("file, bytes", [side.file_nbytes for side in sides])
    ratios = add_bytes("in memory, bytes", [side.weights_nbytes for side in sides])
    shown.add_row("occupancy", "100.00%", "", *(f"{1 / r:.2%}" for r in ratios))
    for batch in _BATCHES:
        ms = [side.ms[batch] for side in sides]
        cells = [f"{m:.3f} ({ms[0] / m:.2f} x)" for m in ms[1:]]
        shown.add_row(f"ms an image, batch {batch}", f"{ms[0]:.3f}", "", *cells)
    return shown


def digits() -> tuple[Images, Images, Images]:
    """Return images [n, 1, 8, 8] in [0, 1] and labels [n]: 3/5 train, 1/5 validation, 1/5 test.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    data = load_digits()
    images = torch.from_numpy(data.images / 16).float().unsqueeze(1)
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    fifth = len(labels) // 5
    test, validation, train = order[:fifth], order[fifth : 2 * fifth], order[2 * fifth :]
    return (
        _pick(images, labels, train),
        _pick(images, labels, validation),
        _pick(images, labels, test),
    )


def _run(
    seed: int, goal: Goal, keep: Path | None, epochs: int | None, progress: Progress | None
) -> Result:
    start = time.perf_counter()
    train, validation, test = digits()
    trainer = _Trainer(train, validation, seed, epochs, progress)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = DigitsNet()
    trainer.fit(model, "training", 15, torch.optim.Adam(model.parameters(), lr=2e-3))
    dense = copy.deepcopy(model)
    prune(model, PLAN)
    trainer.fit(model, "training what is left", 8, torch.optim.Adam(model.parameters(), lr=1e-3))
    quantize(model, PLAN)
    codebooks = list(codebook_parameters(model))
    trainer.fit(model, "training shared weights", 5, torch.optim.Adam(codebooks, lr=1e-3))
    shared = copy.deepcopy(model).eval()
    unparametrize(shared)
    with tempfile.TemporaryDirectory() as folder:
        path = keep or Path(folder, "digits.terse")
        small = compress(model, goal=goal).eval()
        io.save(small, path)
        with torch.device("meta"):
            fresh = DigitsNet()
        loaded = io.load(path, into=fresh).eval()
        graph = Path(folder, "exported.terse")
        export(small, test[0][:1], graph, goal=goal)
        network = Network.load(graph, resident="compressed")
        exported_nbytes = graph.stat().st_size
        dense_nbytes = _safetensors_nbytes(dense, Path(folder))
        compressed_nbytes = path.stat().st_size
    _check_equal(decompress(loaded), shared)
    dense_ms, loaded_ms, exported_ms = _times((dense, loaded, network), test[0])
    classes = [_classes(m, test[0]) for m in (shared, loaded, network)]
    sizes = report(loaded)
    exported_accuracy = (classes[2] == test[1]).float().mean().item()
    return Result(
        dense=Side(_accuracy(dense, test), dense_nbytes, sizes.dense_nbytes, dense_ms),
        compressed=Side(_accuracy(loaded, test), compressed_nbytes, sizes.nbytes, loaded_ms),
        exported=Side(exported_accuracy, exported_nbytes, network.nbytes, exported_ms),
        shared_accuracy=_accuracy(shared, test),
        equal=int(((classes[0] == classes[1]) & (classes[0] == classes[2])).sum()),
        images=len(test[0]),
        seconds=time.perf_counter() - start,
    )


class _Trainer:
    """Trains one model three times, on the same images."""

    def __init__(
        self,
        train: Images,
        validation: Images,
        seed: int,
        epochs: int | None,
        progress: Progress | None,
    ) -> None:
        self._train, self._validation = train, validation
        self._seed, self._epochs, self._progress = seed, epochs, progress

    def fit(self, model: nn.Module, what: str, epochs: int, optimizer: Optimizer) -> None:
        epochs = epochs if self._epochs is None else min(epochs, self._epochs)

        def tell(state: State) -> None:
            if self._progress is not None:
                self._progress(what, state.epoch + 1, epochs)

        batches = TensorBatches(*self._train, batch_size=_BATCH_SIZE, seed=self._seed)
        best = _KeepBest(self._validation)
        fit(
            model,
            batches,
            epochs=epochs,
            optimizer=optimizer,
            loss=F.cross_entropy,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs, 1)),
            callbacks=[best, tell],
            seed=self._seed,
        )


class _KeepBest(Callback):
    """Puts the model, at the end, into the state with the least validation loss."""

    def __init__(self, validation: Images) -> None:
        self._validation = validation
        self._least = float("inf")
        self._state: dict[str, Tensor] = {}

    def fit_start(self, state: State) -> None:
        self.epoch_end(state)

    def epoch_end(self, state: State) -> None:
        loss = evaluate(state.model, [self._validation], F.cross_entropy)
        if loss < self._least:
            self._least = loss
            self._state = copy.deepcopy(state.model.state_dict())

    def fit_end(self, state: State) -> None:
        state.model.load_state_dict(self._state)


def _pick(images: Tensor, labels: Tensor, part: Tensor) -> Images:
    return images[part], labels[part]


def _accuracy(model: nn.Module, images: Images) -> float:
    return evaluate(model, [images], accuracy)


def _classes(model: nn.Module | Network, images: Tensor) -> Tensor:
    if isinstance(model, Network):
        return torch.from_numpy(np.asarray(model.run(images.numpy(), threads=1))).argmax(1)
    with torch.no_grad():
        scores: Tensor = model(images)
    return scores.argmax(1)


def _check_equal(found: nn.Module, expected: nn.Module) -> None:
    """Check that two models hold the same bits under the same names."""
    tensors = found.state_dict()
    for name, tensor in expected.state_dict().items():
        if not torch.equal(tensors[name].view(torch.int32), tensor.view(torch.int32)):
            raise InternalError(f"demo: {name} came back from the file with other bits")


def _safetensors_nbytes(model: nn.Module, folder: Path) -> int:
    """Return the size of a safetensors file of the model."""
    io.save(model, folder / "dense.terse")
    return io.to_safetensors(folder / "dense.terse", folder / "dense.safetensors")


def _times(models: Sequence[nn.Module | Network], images: Tensor) -> list[dict[int, float]]:
    """Return the median milliseconds an image of each model, called in turn."""
    medians: list[dict[int, float]] = [{} for _ in models]
    for batch in _BATCHES:
        times: list[list[float]] = [[] for _ in models]
        for _ in range(_RUNS):
            for model, measured in zip(models, times, strict=True):
                start = time.perf_counter()
                _classes(model, images[:batch])
                measured.append(1000 * (time.perf_counter() - start) / batch)
        for median, measured in zip(medians, times, strict=True):
            median[batch] = statistics.median(measured)
    return medians
