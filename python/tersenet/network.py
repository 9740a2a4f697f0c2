"""Networks that run from their file, on NumPy alone.

::

    export(model, example, "model.terse")          once, with torch
    Network.load("model.terse").run(x)             anywhere, without

A network holds its weights as `resident` says and computes in the core: no operator is run from
Python. It never changes, so threads may share it; one batch gives the same bits for any number of
threads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt

from tersenet import _core
from tersenet.files import Limits, Path

if TYPE_CHECKING:
    from tersenet._core import Resident

F32 = npt.NDArray[np.float32]

_RESIDENT = ("compressed", "cached", "dense")


class Network:
    """A network that was exported to a file; `run` computes what the model did."""

    def __init__(self, core: _core.Network, path: str) -> None:
        """Take over a loaded network; use `load`."""
        self._core = core
        self.path = path

    @classmethod
    def load(
        cls,
        path: Path,
        resident: Resident = "cached",
        mmap: bool = False,
        limits: Limits | None = None,
    ) -> Self:
        """Load the network that a file holds, and check it in full.

        Weights are read side by side, on as many cores as there are, or threads that torch takes.

        Args:
            path: a file that `tersenet.export` wrote.
            resident: how matrices are held: "compressed" as in the file (what is an archive there
                as coded or grouped), "cached" in the layout that multiplies fastest, "dense" as plain
                numbers. Of the last two, convolutions and batches also keep the weights decoded,
                for the last four shapes of input, and a one-dimensional convolution of an embedding
                keeps the products of its kernels with the embedding's rows, where those are fewer
                numbers than the weights.
            mmap: map the file instead of reading it; then nobody may write to it meanwhile.
            limits: what the file may ask for; its tensor limit also holds for each value of a run.

        Raises:
            OSError: if the file cannot be read.
            FormatError: if it is damaged, or beyond the limits.
            ValueError: if it holds no network, or `resident` is another word.
        """
        if resident not in _RESIDENT:
            expected = ", ".join(map(repr, _RESIDENT))
            raise ValueError(f"network: resident is {resident!r}, expected one of {expected}")
        allowed = vars(limits or Limits())
        core = _core.Network.load(os.fspath(path), resident, mmap=mmap, **allowed)
        return cls(core, os.fspath(path))

    def run(
        self,
        *arrays: npt.ArrayLike,
        threads: int | None = None,
        out: F32 | Sequence[F32] | None = None,
    ) -> F32 | tuple[F32, ...]:
        """Return what the model returns for these inputs: an array, or a tuple of them.

        Args:
            arrays: one for each of `inputs`, in their order, with any batch.
            threads: by default the lesser of torch's (where it is loaded) and what the process may
                use; any number gives the same bits.
            out: C-contiguous float32 to write to, in the shapes of the outputs.

        Raises:
            ValueError: for another number of inputs, another type or another shape.
        """
        checked = self._checked(arrays)
        given: Sequence[F32] | None = None
        if out is not None:
            given = list(out) if isinstance(out, tuple | list) else [cast("F32", out)]
        for number, array in enumerate(given or []):
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise ValueError(f"out: array {number} is {kind}, expected an array of float32")
        outputs = self._core.run(checked, threads, given)
        return tuple(outputs) if self._core.outputs[1] else outputs[0]

    @property
    def inputs(self) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """The type and the shape of each input by name; the batch is None."""
        return {
            name: (dtype, tuple(size if size >= 0 else None for size in shape))
            for name, dtype, shape in self._core.inputs
        }

    @property
    def noutputs(self) -> int:
        """The number of arrays that a run makes."""
        return self._core.outputs[0]

    @property
    def signature(self) -> str:
        """The inputs as people write them: "x: float32 [batch, 3, 32, 32]"."""
        return ", ".join(
            f"{name}: {dtype} {_written(shape)}" for name, (dtype, shape) in self.inputs.items()
        )

    @property
    def nbytes(self) -> int:
        """The bytes of all weights as they are held now; a shared one counts once."""
        return self._core.nbytes

    def layers(self) -> list[tuple[str, str, int]]:
        """Return (place in the model, layout, nbytes) of each layer with a matrix, in order."""
        return self._core.layers()

    def __repr__(self) -> str:
        """Name the path, the inputs and the size."""
        return f"Network({self.path!r}, {self.signature}, {self.nbytes:,} bytes)"

    def _checked(self, arrays: Sequence[Any]) -> list[npt.NDArray[Any]]:
        inputs = self.inputs
        if len(arrays) != len(inputs):
            names = ", ".join(inputs)
            raise ValueError(f"run: {len(arrays)} inputs, expected {len(inputs)} ({names})")
        batch: int | None = None
        checked = [np.asarray(array) for array in arrays]
        for array, (name, (dtype, expected)) in zip(checked, inputs.items(), strict=True):
            if array.dtype.kind not in ("iu" if dtype == "int64" else "fiub"):
                raise ValueError(f"run: input {name} is {array.dtype}, expected {dtype}")
            found = array.shape
            fits = len(found) == len(expected) and all(
                size is None or size == n for n, size in zip(found, expected, strict=True)
            )
            if not fits:
                wanted = _written(expected)
                raise ValueError(f"run: input {name} has shape {list(found)}, expected {wanted}")
            batch = found[0] if batch is None else batch
            if found[0] != batch:
                raise ValueError(f"run: input {name} has a batch of {found[0]}, expected {batch}")
        return checked


def _written(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('batch' if size is None else str(size) for size in shape)}]"
