"""Payloads: the bytes of one compressed matrix as a plain uint8 tensor.

::

    payload: uint8 [nbytes]  ──▶  Python's bytes object  ◀──  the matrix that views them

A plain tensor goes through state_dict, torch.save, compile and export without any of them knowing
what it is. Python's bytes object owns the memory; the tensor and the matrix both view it, so the
weights are there once. Which matrix belongs to a payload is remembered for as long as the tensor's
storage lives. A payload never seen before (in an exported program), or one that was written to
since (its version counter tells), is checked in full and its matrix made from a copy. Whoever
writes through `.data` or NumPy goes behind that counter: do not.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor

from tersenet._core import CompressedMatrix

_Entry = tuple[int, CompressedMatrix]
_matrices: weakref.WeakKeyDictionary[torch.UntypedStorage, dict[tuple[int, int], _Entry]] = (
    weakref.WeakKeyDictionary()
)


class Payload:
    """A compressed matrix and the tensor of its bytes, in one memory; never changed, so shared.

    `tensor` is uint8 [nbytes]. Deep copies are the object itself; pickles hold the bytes.
    """

    def __init__(self, data: bytes) -> None:
        """Check the bytes of one matrix and make a tensor that views them.

        Raises:
            FormatError: if they are not the bytes of one matrix.
        """
        self.data = data
        matrix = CompressedMatrix.from_bytes(data)
        with warnings.catch_warnings(), torch.inference_mode(False):
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self.tensor = torch.frombuffer(data, dtype=torch.uint8)
        _remember(self.tensor, matrix)

    @classmethod
    def of(cls, source: CompressedMatrix | Tensor) -> Payload:
        """Return the payload of a matrix, or of a tensor that holds the bytes of one.

        Raises:
            FormatError: if the tensor holds something else.
            ValueError: if it is not uint8 [nbytes] on the CPU.
        """
        if isinstance(source, CompressedMatrix):
            return cls(source.to_bytes())
        _check_payload(source)
        return cls(_bytes_of(source))

    @property
    def matrix(self) -> CompressedMatrix:
        """The matrix."""
        return matrix_of(self.tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> Payload:
        """Return the object itself."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the bytes, as they are now."""
        return Payload, (self.data,)


def matrix_of(payload: Tensor) -> CompressedMatrix:
    """Return the matrix whose bytes a tensor holds.

    Raises:
        FormatError: if the tensor was not seen before or was written to, and is not valid.
        ValueError: if it is not uint8 [nbytes] on the CPU.
    """
    if payload.is_inference():  # has no version counter: nothing could tell that it was written to
        _check_payload(payload)
        return CompressedMatrix.from_bytes(_bytes_of(payload))
    known = _matrices.get(payload.untyped_storage())
    if known is not None and payload.is_contiguous():
        entry = known.get((payload.data_ptr(), payload.nbytes))
        if entry is not None and entry[0] == payload._version:
            return entry[1]
    _check_payload(payload)
    matrix = CompressedMatrix.from_bytes(_bytes_of(payload))
    if payload.is_contiguous():
        _remember(payload, matrix)
    return matrix


def _bytes_of(payload: Tensor) -> bytes:
    return payload.detach().numpy().tobytes()


def _check_payload(payload: Tensor) -> None:
    if payload.dtype != torch.uint8 or payload.dim() != 1 or payload.device.type != "cpu":
        raise ValueError(
            f"payload: {payload.dtype} {list(payload.shape)} on {payload.device}, "
            "expected torch.uint8 [nbytes] on the cpu"
        )


def _remember(payload: Tensor, matrix: CompressedMatrix) -> None:
    known = _matrices.setdefault(payload.untyped_storage(), {})
    known[payload.data_ptr(), payload.nbytes] = (payload._version, matrix)
