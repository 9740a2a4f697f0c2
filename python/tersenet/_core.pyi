"""The compiled core: compressed matrices, files of them, and the paper's bounds."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__version__: str
LAYOUTS: tuple[str, ...]
CODERS: tuple[str, ...]
PAIRS: tuple[tuple[str, str], ...]
SIMD: str
SIMD_AVAILABLE: tuple[str, ...]

Goal: TypeAlias = Literal["size", "speed"]
Columns: TypeAlias = Literal["coded", "raw"]

@final
class Codebook:
    """Distinct float32 values, in the order given, that several matrices may share.

    Values are told apart by their bits; +0.0 means pruned and is not one of them.
    """

    def __new__(cls, values: ArrayLike) -> Codebook:
        """Takes `values: float32 [k]`, k ≤ 65,536; repeated values or +0.0 raise ValueError."""

    @property
    def values(self) -> NDArray[np.float32]: ...
    def __len__(self) -> int: ...

@final
class CompressedMatrix:
    """A matrix stored losslessly in one layout, and multiplied from there; immutable."""

    @staticmethod
    def compress(
        weights: ArrayLike,
        layout: str = "auto",
        coder: str = "auto",
        goal: Goal = "size",
        *,
        columns: Columns = "coded",
    ) -> CompressedMatrix: ...
    @staticmethod
    def from_symbols(
        symbols: NDArray[np.uint16],
        codebook: Codebook,
        mask: NDArray[np.bool_],
        layout: str = "auto",
        coder: str = "auto",
        goal: Goal = "size",
        *,
        columns: Columns = "coded",
    ) -> CompressedMatrix: ...
    @staticmethod
    def from_bytes(data: bytes) -> CompressedMatrix: ...
    def to_bytes(self) -> bytes: ...
    def decompress(self, threads: int | None = None) -> NDArray[np.float32]: ...
    def rows(self, ids: ArrayLike) -> NDArray[np.float32]: ...
    def matvec(self, x: ArrayLike, threads: int | None = None) -> NDArray[np.float32]: ...
    def matmul(self, x: ArrayLike, threads: int | None = None) -> NDArray[np.float32]: ...
    def matmul_transposed(
        self, x: ArrayLike, threads: int | None = None
    ) -> NDArray[np.float32]: ...
    def to(
        self,
        layout: str = "auto",
        coder: str = "auto",
        goal: Goal = "size",
        *,
        columns: Columns = "coded",
    ) -> CompressedMatrix: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nnz(self) -> int: ...
    @property
    def codebook(self) -> NDArray[np.float32]: ...
    @property
    def layout(self) -> str: ...
    @property
    def coder(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def bits_per_weight(self) -> float: ...
    @property
    def occupancy(self) -> float: ...
    def sections(self) -> dict[str, int]: ...
    def __eq__(self, value: object, /) -> bool: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

def write(
    path: str,
    tensors: Sequence[tuple[str, str, Sequence[int], CompressedMatrix | bytes]],
    aliases: Sequence[tuple[str, str]],
    metadata: Mapping[str, str],
) -> int:
    """Writes a container beside `path`, syncs it, renames it; returns its size in bytes.

    A tensor is (name, dtype, shape, CompressedMatrix or its little-endian bytes); an alias is
    (name, name of a tensor). Equal codebooks are stored once.
    """

@final
class Reader:
    """An open `.terse` file: a checked header, and tensors read when asked for."""

    def __new__(
        cls,
        path: str,
        mmap: bool = False,
        *,
        max_header_nbytes: int,
        max_tensor_nbytes: int,
        max_tensors: int,
    ) -> Reader: ...
    def keys(self) -> list[str]: ...
    def entry(self, name: str) -> dict[str, Any]:
        """What the header says: kind, dtype, shape, nbytes; alias_of, layout, coder, nnz where they apply."""
    def get(self, name: str) -> CompressedMatrix | bytes: ...
    def metadata(self) -> dict[str, str]: ...
    def verify(self) -> None:
        """Reads and checks everything; raises FormatError that names what is wrong and where."""
    @property
    def nbytes(self) -> int: ...

def hac_bound(shape: tuple[int, int], k: int, word_bits: int) -> float: ...
def shac_bound(shape: tuple[int, int], density: float, k: int, word_bits: int) -> float: ...
def csr_bits(shape: tuple[int, int], nnz: int) -> int: ...
def index_map_bits(shape: tuple[int, int], k: int) -> int: ...
def cser_bits(shape: tuple[int, int], counts: tuple[int, int, int, int, int]) -> int: ...
def hac_bits(stream_bits: int, k: int, longest: int) -> int: ...
def shac_bits(shape: tuple[int, int], nnz: int, stream_bits: int, k: int, longest: int) -> int: ...
def entropy(histogram: Sequence[int]) -> float: ...
