"""Element types: their names in files, in NumPy and in torch, and exact steps between them.

::

    file        NumPy                         torch
    float32     float32                       torch.float32
    bfloat16    uint16, the bit patterns      torch.bfloat16
    float8_*    uint8, the bit patterns       torch.float8_*

Files use torch's names. NumPy has no bfloat16 and no 8-bit floats; arrays of them hold the bit
patterns instead (a bfloat16 is the upper half of a float32). Compressed matrices compute in
float32, which holds every float16 and bfloat16 exactly: `widened` goes there, `narrowed` comes
back, to the same bits.

Price: one pass each; no torch is loaded but by `from_tensor` and `to_tensor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

BIT_PATTERNS = {
    "bfloat16": "uint16",
    "float8_e4m3fn": "uint8",
    "float8_e5m2": "uint8",
}
NUMPY_NAMES = {
    name: BIT_PATTERNS.get(name, name)
    for name in (
        *("float32", "float64", "float16", "bfloat16"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"),
    )
}
MATRIX_NAMES = ("float32", "float16", "bfloat16")
WIDER = {
    "float16": ("float32", "float64"),
    "bfloat16": ("float32", "float64"),
    "float32": ("float64",),
}


def widened(array: Array, name: str) -> F32 | None:
    """Return the elements as float32, or None if that changes a bit of any of them.

    Args:
        array: any shape; of bfloat16 the bit patterns.
        name: the type of the elements.
    """
    if name == "float32":
        return array
    if name == "bfloat16":
        bits: npt.NDArray[np.uint32] = array.astype(np.uint32)
        bits <<= np.uint32(16)
        return bits.view(np.float32)
    if name not in ("float16", "float64"):
        return None
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        wide = array.astype(np.float32)
        back = wide.astype(array.dtype)
    unsigned = f"uint{8 * array.dtype.itemsize}"
    return wide if np.array_equal(back.view(unsigned), array.view(unsigned)) else None


def narrowed(array: F32, name: str) -> Array:
    """Return float32 elements in another float type, rounded to nearest even where inexact."""
    if name == "float32":
        return array
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if name != "bfloat16":
            return array.astype(NUMPY_NAMES[name])
        bits = np.ascontiguousarray(array).view(np.uint32)
        upper = bits >> np.uint32(16)
        rounded = (bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
        rounded = np.where(np.isnan(array), upper | np.uint32(0x40), rounded)
        exact = (bits & np.uint32(0xFFFF)) == 0
        return np.where(exact, upper, rounded).astype(np.uint16)


def from_bytes(data: bytes, name: str, shape: tuple[int, ...]) -> Array:
    """Return little-endian bytes as an array; it views the bytes and is read-only."""
    dtype = np.dtype(NUMPY_NAMES[name]).newbyteorder("<")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def to_bytes(array: Array) -> bytes:
    """Return the elements as little-endian bytes, in C order."""
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).tobytes()


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a torch type."""
    return str(dtype).removeprefix("torch.")


def from_tensor(tensor: torch.Tensor) -> tuple[str, Array]:
    """Return the name of a tensor's type and its elements, sharing memory where possible.

    Raises:
        ValueError: if a file cannot hold the type, or the tensor is sparse or on no real device.
    """
    name = name_of(tensor.dtype)
    if name not in NUMPY_NAMES or str(tensor.layout) != "torch.strided" or tensor.is_meta:
        raise ValueError(
            f"tensor: {tensor.layout} {name} on {tensor.device}, expected a strided tensor of "
            + ", ".join(NUMPY_NAMES)
        )
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if name not in BIT_PATTERNS:
        return name, tensor.numpy()
    import torch

    signed = torch.int16 if tensor.element_size() == 2 else torch.int8
    array = tensor.contiguous().view(signed).numpy()
    return name, array.view(BIT_PATTERNS[name])


def to_tensor(array: Array, name: str) -> torch.Tensor:
    """Return an array as a torch tensor of the named type with memory of its own."""
    import torch

    array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    if name in BIT_PATTERNS:
        array = array.view(f"int{8 * array.dtype.itemsize}")
        dtype: torch.dtype = getattr(torch, name)
        return torch.from_numpy(array).view(dtype)
    return torch.from_numpy(array)
