"""The compiled core: compressed matrices, files of them, and the paper's bounds."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__version__: str

def _panic(message: str) -> None:
    """Panic, so that a test sees what becomes of a defect: an InternalError."""

LAYOUTS: tuple[str, ...]
CODERS: tuple[str, ...]
PAIRS: tuple[tuple[str, str], ...]
SIMD: str
SIMD_AVAILABLE: tuple[str, ...]

Goal: TypeAlias = Literal["size", "speed"]
Columns: TypeAlias = Literal["coded", "raw"]
Resident: TypeAlias = Literal["compressed", "cached", "dense"]
# (name, dtype, shape); a dimension -m is m times the batch.
GraphInput: TypeAlias = tuple[str, str, list[int]]
# (op, inputs, weights, ints, floats, name), as FORMAT.md says.
GraphNode: TypeAlias = tuple[str, list[int], list[str], list[int], list[float], str]
# (inputs, nodes, outputs, is_tuple).
Graph: TypeAlias = tuple[list[GraphInput], list[GraphNode], list[int], bool]

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
        taps: int | None = None,
    ) -> CompressedMatrix:
        """Compress a dense matrix losslessly; equal weights give equal bytes.

        Args:
            weights: float32 [nrows, ncols], or a type that float32 holds exactly; torch's
                [out, in], a convolution's kernel as [out, in * kh * kw].
            layout: one of `LAYOUTS`, or "auto": for size the smallest of packed, coded, grouped,
                hac, shac and dense, or one that multiplies faster and is under half a percent
                larger; for speed packed in whole words, or sell for linear layers where this CPU
                multiplies faster from it, or dense where over half is kept of over 256 values, or
                grouped where a quarter of the kept weights is shared.
            coder: one of `CODERS` that the layout goes with (`PAIRS`), or "auto".
            goal: "size" or "speed".
            columns: "raw" stores hac and shac as published, "coded" also codes columns and row
                ends.
            taps: positions of a convolution's kernel, kh * kw, next to each other in a row: makes
                archive smaller; over 1, "auto" does not take grouped. None is a linear layer, for
                which alone it takes sell; an embedding has 1.

        Raises:
            ValueError: for another type or rank, an unknown name or pair, more than 65,536
                distinct values in a layout other than dense and csr, or taps that do not divide
                ncols.
        """

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
        taps: int | None = None,
    ) -> CompressedMatrix:
        """Compress symbols of a codebook, which matrices may share and which keeps its order.

        Args:
            symbols: uint16 [nrows, ncols], indices into the codebook.
            codebook: the values.
            mask: bool [nrows, ncols], true where a weight is kept; others are +0.0.
            layout: as `compress`.
            coder: as `compress`.
            goal: as `compress`.
            columns: as `compress`.
            taps: as `compress`.

        Raises:
            ValueError: as `compress`, or for a kept symbol outside the codebook.
        """

    @staticmethod
    def from_bytes(data: bytes) -> CompressedMatrix:
        """Take the bytes that `to_bytes` gave, check them in full, and view them in place.

        Raises:
            FormatError: if they are damaged or something else.
        """

    def to_bytes(self) -> bytes:
        """Return the matrix as a container of its own."""

    def decompress(self, threads: int | None = None) -> NDArray[np.float32]:
        """Return the dense matrix, float32 [nrows, ncols], bit by bit.

        `threads` is by default the lesser of torch's (where it is loaded) and what the process may
        use; any number gives the same bits.
        """

    def rows(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Return rows `ids`, integers in [0, nrows), as float32 [len(ids), ncols].

        Raises:
            ValueError: for a row that does not exist.
        """

    def matvec(self, x: ArrayLike, threads: int | None = None) -> NDArray[np.float32]:
        """Return W x, float32 [nrows], for `x` [ncols], computed in float32.

        |y - exact| <= (n + 2) 2**-24 sum |w||x| + n 2**-149 for n = ncols and finite inputs; a
        pruned weight contributes nothing even where x is not finite.

        Raises:
            ValueError: for another shape.
        """

    def matmul(self, x: ArrayLike, threads: int | None = None) -> NDArray[np.float32]:
        """Return X W^T, float32 [batch, nrows], for `x` [batch, ncols]; bounds as `matvec`.

        Raises:
            ValueError: for another shape.
        """

    def matmul_transposed(
        self, x: ArrayLike, threads: int | None = None, *, groups: int = 1
    ) -> NDArray[np.float32]:
        """Return X W, float32 [batch, groups * ncols], for `x` [batch, nrows].

        This is the gradient of `matmul`; with groups that of a grouped convolution's product: the
        rows form so many equal groups, each with columns of its own in the result.

        Raises:
            ValueError: for another shape, or groups that do not divide nrows.
        """

    def conv(
        self,
        x: ArrayLike,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[tuple[int, int], tuple[int, int]],
        dilation: tuple[int, int],
        groups: int,
        bias: ArrayLike | None = None,
        threads: int | None = None,
    ) -> NDArray[np.float32]:
        """Return the convolution of `x` with this matrix as its kernels, as torch's conv2d.

        Args:
            x: float32 [images, channels, height, width]; a conv1d has height 1.
            kernel: height and width; the matrix is [nrows, channels / groups * height * width].
            stride: steps between outputs, down and right.
            padding: zeros before and after, of the height and of the width.
            dilation: steps between taps, down and right.
            groups: groups of channels that do not see each other.
            bias: float32 [nrows], added to each output.
            threads: as `decompress`.

        Returns:
            float32 [images, nrows, height, width], each sum within the bound of `matvec`.

        Raises:
            ValueError: if shapes do not fit.
        """

    def to(
        self,
        layout: str = "auto",
        coder: str = "auto",
        goal: Goal = "size",
        *,
        columns: Columns = "coded",
        taps: int | None = None,
    ) -> CompressedMatrix:
        """Return the same matrix in another layout, without a dense copy; as `compress`."""

    @property
    def shape(self) -> tuple[int, int]:
        """(nrows, ncols)."""

    @property
    def nnz(self) -> int:
        """The number of kept weights."""

    @property
    def codebook(self) -> NDArray[np.float32]:
        """The distinct kept values, float32 [k]; found anew where the layout stores values."""

    @property
    def layout(self) -> str:
        """One of `LAYOUTS`."""

    @property
    def coder(self) -> str:
        """One of `CODERS`."""

    @property
    def nbytes(self) -> int:
        """The sum of `sections`."""

    @property
    def bits_per_weight(self) -> float:
        """Stored bits / (nrows * ncols)."""

    @property
    def occupancy(self) -> float:
        """Stored bytes / bytes of dense float32 (the paper's measure)."""

    def sections(self) -> dict[str, int]:
        """Return the bytes of every part that is needed to multiply, by name."""

    def __eq__(self, value: object, /) -> bool: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

@final
class CodedArray:
    """The elements of a plain tensor, coded losslessly; immutable."""

    @staticmethod
    def encode(data: bytes, dtype: str) -> CodedArray | None:
        """Codes little-endian elements; None where they take no fewer bytes so.

        Raises:
            ValueError: for no whole number of elements, or a bool over 1.
        """
    def decode(self) -> bytes:
        """The little-endian elements."""
    @property
    def nbytes(self) -> int:
        """The coded bytes."""

def write(
    path: str,
    tensors: Sequence[tuple[str, str, Sequence[int], CompressedMatrix | CodedArray | bytes]],
    aliases: Sequence[tuple[str, str]],
    metadata: Mapping[str, str],
    graph: Graph | None = None,
    *,
    for_size: bool = False,
) -> int:
    """Writes a container beside `path`, syncs it, renames it; returns its size in bytes.

    A tensor is (name, dtype, shape, CompressedMatrix or its little-endian bytes, coded or as they
    are); an alias is (name, name of a tensor). Equal codebooks are stored once. For size they are
    coded where that is smaller, and archives of small matrices go on from each other, so that one is
    decoded after those before it. A graph names its weights among the tensors and aliases; whether
    they fit is checked when it is loaded.

    Raises:
        ValueError: for tensors or a graph that contradict themselves, naming what.
        OSError: if the file cannot be written; what was there is then unchanged.
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
        max_total_nbytes: int,
        max_ratio: int,
        max_tensors: int,
    ) -> Reader: ...
    def keys(self) -> list[str]: ...
    def entry(self, name: str) -> dict[str, Any]:
        """What the header says: kind, dtype, shape, nbytes; alias_of, layout, coder, nnz where they apply."""
    def get(self, name: str) -> CompressedMatrix | bytes: ...
    def get_each(
        self, names: list[str], goal: Goal | None, resident: set[str]
    ) -> list[CompressedMatrix | bytes]:
        """Read side by side, laid out for the goal, archives among `resident` coded or grouped."""
    def metadata(self) -> dict[str, str]: ...
    def graph(self) -> Graph | None:
        """The network's graph, where there is one, with absent weights and zero floats filled in."""
    @property
    def has_graph(self) -> bool: ...
    def verify(self) -> None:
        """Reads and checks everything; raises FormatError that names what is wrong and where."""
    @property
    def nbytes(self) -> int: ...

@final
class Network:
    """A network loaded from a file and run without torch; immutable, fit for many threads."""

    @staticmethod
    def load(
        path: str,
        resident: Resident = "cached",
        *,
        mmap: bool = False,
        max_header_nbytes: int,
        max_tensor_nbytes: int,
        max_total_nbytes: int,
        max_ratio: int,
        max_tensors: int,
    ) -> Network:
        """Load the network of the file at `path`, and check its graph against its weights.

        Args:
            path: a file that `write` made with a graph.
            resident: "compressed" holds each matrix as the file does, "cached" in the layout that
                multiplies fastest, "dense" as numbers; the last two keep weights decoded for the
                shapes run last.
            mmap: map the file instead of reading it; it must then not change.
            max_header_nbytes: refuse a larger header.
            max_tensor_nbytes: refuse a tensor, or a value that a run makes, of more bytes.
            max_total_nbytes: refuse tensors of more bytes as dense numbers in all.
            max_ratio: refuse more of those for each byte of the file.
            max_tensors: refuse more tensors.

        Raises:
            ValueError: if the file holds no graph.
            FormatError: if graph and weights do not agree, naming the node.
        """

    def run(
        self,
        inputs: Sequence[ArrayLike],
        threads: int | None = None,
        out: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run on one array for each input, without the GIL; return one array for each output.

        Args:
            inputs: arrays of the types and shapes that `inputs` says, any batch.
            threads: as `CompressedMatrix.decompress`.
            out: C-contiguous arrays of the outputs' shapes to write to and return.

        Raises:
            ValueError: for another shape or type, naming the input or the node.
        """

    @property
    def inputs(self) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape) of each input; a dimension -m is m times the batch."""

    @property
    def outputs(self) -> tuple[int, bool]:
        """(number of outputs, whether they form a tuple)."""

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as they are held now; a shared one counts once."""

    def layers(self) -> list[tuple[str, str, int]]:
        """Return (place, layout, nbytes) of each weighted layer, in the order they run."""

def hac_bound(shape: tuple[int, int], k: int, word_bits: int) -> float: ...
def shac_bound(shape: tuple[int, int], density: float, k: int, word_bits: int) -> float: ...
def csr_bits(shape: tuple[int, int], nnz: int) -> int: ...
def index_map_bits(shape: tuple[int, int], k: int) -> int: ...
def cser_bits(shape: tuple[int, int], counts: tuple[int, int, int, int, int]) -> int: ...
def hac_bits(stream_bits: int, k: int, longest: int) -> int: ...
def shac_bits(shape: tuple[int, int], nnz: int, stream_bits: int, k: int, longest: int) -> int: ...
def entropy(histogram: Sequence[int]) -> float: ...
