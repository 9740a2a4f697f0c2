"""What every trial of a sweep starts from: a trained model and its data, sent once to each worker.

::

    model_fn() ──▶ model ┐
    data ──▶ Data        ┴─▶ Work ──pickle──▶ worker ──▶ Work, kept there
                              │
                        fresh(): the data as it was at first, tensors shared, all else anew

Why fresh data for each trial: batches that shuffle draw from a generator of their own, so a trial
would depend on those before it in the same process, and two machines would find two answers. The
data is pickled once, but for its tensors and arrays, and each trial unpickles its own.

Digests are of every value of the model and of the batches, one pass over them, so that results of
another model or other data are never taken for this one's.

Price: the model and the data once more, as bytes, in the process that sweeps.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from tersenet.pruning.resuming import digest_of
from tersenet.training.loop import Batch, Loss, accuracy, seeded

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True)
class Data:
    """What trials train on, and what they are measured on.

    Args:
        training: batches as for `fit`, iterated anew each epoch; None where nothing trains.
        validation: batches as for `evaluate`; on examples that nothing is reported of.
        loss: outputs and targets to a scalar, for training.
        measure: outputs and targets to how good a batch is, larger is better, as for `evaluate`.
    """

    training: Iterable[Batch] | None
    validation: Iterable[Batch]
    loss: Loss = F.cross_entropy
    measure: Any = accuracy

    def __post_init__(self) -> None:
        """Check that batches can be iterated more than once."""
        for name in ("training", "validation"):
            batches = getattr(self, name)
            if batches is None and name == "training":
                continue
            if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
                found = type(batches).__name__
                raise ValueError(f"sweep: data's {name} is {found}, expected batches to iterate")
            if hasattr(batches, "__next__"):
                found = type(batches).__name__
                raise ValueError(
                    f"sweep: data's {name} is {found}, which ends for good, expected batches that "
                    "each trial can iterate: a list, TensorBatches or a DataLoader"
                )

    @classmethod
    def of(cls, value: Any) -> Data:
        """Return data from itself, from (training, validation), or from an object with these.

        Raises:
            ValueError: if it is none of these.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, tuple | list) and len(value) == 2:
            return cls(*value)
        if hasattr(value, "training") and hasattr(value, "validation"):
            others = {n: getattr(value, n) for n in ("loss", "measure") if hasattr(value, n)}
            return cls(value.training, value.validation, **others)
        raise ValueError(
            f"sweep: data is {type(value).__name__}, expected (training, validation), or an object "
            "with these as attributes"
        )


def key_of_bytes(data: bytes) -> str:
    """Return what tells these bytes from others."""
    return hashlib.sha256(data).hexdigest()


class Work:
    """A model, which is never changed, and its data, fresh for each trial."""

    def __init__(self, model: nn.Module, data: Data) -> None:
        """Take the model, and the data apart.

        Raises:
            TypeError: if the model is none of torch's.
            ValueError: if it is not on the CPU, or the data cannot be pickled.
        """
        if not isinstance(model, nn.Module):
            found = type(model).__name__
            raise TypeError(f"sweep: model_fn gave {found}, expected a model of torch's")
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.device.type != "cpu":
                raise ValueError(
                    f"sweep: {name} is on {tensor.device}, expected a model on the cpu"
                )
        self.model = model
        self._tensors: list[Any] = []
        stream = io.BytesIO()
        with _explained("data"):
            _TakingApart(stream, self._tensors).dump(data)
        self._data = stream.getvalue()

    def fresh(self) -> Data:
        """Return the data as it was at first; tensors and arrays are the same objects each time."""
        data = _PuttingTogether(io.BytesIO(self._data), self._tensors).load()
        assert isinstance(data, Data)
        return data

    def to_bytes(self) -> bytes:
        """Return it pickled.

        Raises:
            ValueError: if the model cannot be pickled.
        """
        with _explained("model"):
            return pickle.dumps(self, protocol=5)

    def model_digest(self) -> str:
        """Return a digest of the model's architecture, as it prints, and of all its tensors."""
        state = self.model.state_dict()
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        return digest_of(tensors, _ADDRESS.sub("", repr(self.model)))

    def data_digest(self, *, trains: bool) -> str:
        """Return a digest of the batches, of those of training only where something trains.

        Raises:
            ValueError: if they hold something without a digest.
        """
        data = self.fresh()
        digest = hashlib.sha256(_name(data.measure).encode())
        parts = {"validation": data.validation}
        if trains:
            assert data.training is not None
            digest.update(_name(data.loss).encode())
            parts["training"] = data.training
        for name, batches in parts.items():
            digest.update(name.encode())
            with seeded(self.model, 0):
                for batch in batches:
                    _update(digest, batch, name)
        return digest.hexdigest()


class _TakingApart(pickle.Pickler):
    """Pickles all but tensors and arrays, which go into a list."""

    def __init__(self, stream: io.BytesIO, tensors: list[Any]) -> None:
        super().__init__(stream, protocol=5)
        self._tensors = tensors
        self._places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor | np.ndarray):
            return None
        place = self._places.setdefault(id(obj), len(self._tensors))
        if place == len(self._tensors):
            self._tensors.append(obj)
        return place


class _PuttingTogether(pickle.Unpickler):
    """Unpickles what `_TakingApart` pickled."""

    def __init__(self, stream: io.BytesIO, tensors: list[Any]) -> None:
        super().__init__(stream)
        self._tensors = tensors

    def persistent_load(self, pid: Any) -> Any:
        return self._tensors[pid]


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say of what cannot be pickled whose part it is, and what to do."""
    try:
        yield
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ValueError(
            f"sweep: the {what} cannot be pickled, as workers need: {error}; expected classes and "
            "functions of a module, no lambdas or open files"
        ) from error


def _name(function: Any) -> str:
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", None)
    return f"{module}.{name}" if name else _ADDRESS.sub("", repr(function))


def _update(digest: Any, value: Any, name: str) -> None:
    if isinstance(value, Tensor):
        digest.update(digest_of({"": value}).encode())
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        digest.update(f"{value.dtype.str} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    elif isinstance(value, tuple | list):
        digest.update(f"{len(value)} in order".encode())
        for part in value:
            _update(digest, part, name)
    elif isinstance(value, Mapping):
        digest.update(f"{len(value)} by name".encode())
        for key, part in value.items():
            digest.update(repr(key).encode())
            _update(digest, part, name)
    elif value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
        digest.update(repr(value).encode())
    else:
        found = type(value).__name__
        raise ValueError(
            f"sweep: a batch of data's {name} holds {found}, expected tensors, arrays, numbers, "
            "strings, or tuples, lists and mappings of these"
        )
