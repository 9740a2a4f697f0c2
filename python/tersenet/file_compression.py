"""Compress a checkpoint without its model, tensor by tensor.

::

    header ─▶ which tensors are layers' weights ─▶ the plan's rule for each
    only for pruning_scope "global":      two readings ─▶ one cutoff for layers that ask the same
    only for codebook_scope "kind":       a reading    ─▶ kept weights of a kind ─▶ one codebook
    each tensor: read, prune, quantize, compress; kept plain where that takes fewer bytes
    write the file

A layer's weight is a float32, float16 or bfloat16 tensor of two to five dimensions whose name ends
in "weight". Patterns of a plan match its name without ".weight". A weight of two dimensions is of
kind fc, one of more conv; one with a part of its name that begins or ends with "emb" or "embed..."
(or GPT-2's wte, wpe) is of kind embedding, which wildcards alone do not reach. Tensors that no rule
reaches are stored losslessly: compressed if they have two dimensions or more and become smaller.
For the goal "size" what stays plain is coded where that is smaller; a matrix that was not quantized
here, and whose layout is "auto", must be smaller than that.

Why this way: the same rules, quantizers and seeds as for a model, so the same plan gives the same
weights; but memory holds only the results and, for each thread, one dense tensor. Shared codebooks
also need the kept weights of one kind at a time, since a quantizer sorts them.

Price: one reading of the file, up to four with both scopes; the time is the quantizers'.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from tersenet import dtypes
from tersenet._core import Codebook, CodedArray, CompressedMatrix
from tersenet.checkpoint import Checkpoint, open_checkpoint
from tersenet.dtypes import F32, Array
from tersenet.files import Path, Typed, archived, coded, taps, write
from tersenet.plan import Plan, Rule
from tersenet.pruning import PRUNERS, Mask
from tersenet.pruning.streaming import Cutoff, global_cutoffs
from tersenet.quantization import Quantized, layer_seed, quantize_arrays

if TYPE_CHECKING:
    from tersenet._core import Goal

Progress = Callable[[str, int, int], None]

_MAX_NDIM = 5
_EMBEDDING = re.compile(r"(^|_)embed[a-z]*($|_)|(^|_)emb($|_)|^w[tp]e$")


@dataclass(frozen=True)
class TensorRow:
    """What became of one tensor; `layout`, `nnz` and `k` are None where it is plain.

    `coder` is None where it is plain and not coded; `nbytes` are those of the tensor alone (a shared codebook counts in each); `dropped` weights
    were kept before they were quantized, and became zero; `reason` says why a matrix is plain.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dense_nbytes: int
    nbytes: int
    nnz: int | None = None
    k: int | None = None
    layout: str | None = None
    coder: str | None = None
    dropped: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class FileReport:
    """What compressing a file did: a row for each tensor, in the file's order, and the totals.

    `aliases` are other names of some tensors, `left_out` names what the source holds besides
    tensors of the model.
    """

    rows: tuple[TensorRow, ...]
    aliases: Mapping[str, str]
    source_nbytes: int
    target_nbytes: int
    left_out: tuple[str, ...]


def layers_of(checkpoint: Checkpoint) -> dict[str, tuple[str, str]]:
    """Return layer name and kind for the name of each tensor that is a layer's weight."""
    found = {}
    for name in [*checkpoint.entries, *checkpoint.aliases]:
        entry = checkpoint.entries[checkpoint.aliases.get(name, name)]
        is_weight = name.rpartition(".")[2].endswith("weight")
        if not is_weight or not _can_be_matrix(entry.dtype, entry.shape):
            continue
        is_whole = name == "weight" or name.endswith(".weight")  # and not in_proj_weight
        layer = name.removesuffix("weight").removesuffix(".") if is_whole else name
        kind = "fc" if len(entry.shape) == 2 else "conv"
        if any(_EMBEDDING.search(part) for part in layer.lower().split(".")):
            kind = "embedding"
        found[name] = (layer, kind)
    return found


def compress_file(
    source: Path,
    target: Path,
    plan: Plan | None = None,
    *,
    goal: Goal = "size",
    layout: str = "auto",
    coder: str = "auto",
    threads: int = 1,
    progress: Progress | None = None,
) -> FileReport:
    """Write a checkpoint as a `.terse` file, pruned and quantized as a plan says.

    Without a plan every bit stays. The result is the same for any number of threads.

    Args:
        source: a checkpoint, see `tersenet.checkpoint`.
        target: where to; an old file stays until the new one is whole.
        plan: what to do to which layer; its goal, layouts and coders come first.
        goal: "size" or "speed", for what is "auto".
        layout: of the tensors for which the plan says nothing.
        coder: of the tensors for which the plan says nothing.
        threads: tensors worked on at once, each with its own memory.
        progress: called with what is done now, and bytes done and in all.

    Raises:
        OSError: if a file cannot be read or written.
        FormatError: if the source is damaged.
        ValueError: if source and target are one file, the plan does not fit the source, or the
            layout, coder or quantizer does not exist.
    """
    if threads < 1:
        raise ValueError(f"compress: threads is {threads}, expected at least 1")
    if os.path.exists(target) and os.path.samefile(source, target):
        raise ValueError(f"compress: {target} is the source, expected another file to write")
    checkpoint = open_checkpoint(source)
    work = _Work(checkpoint, plan or Plan(), goal, layout, coder, progress)
    cutoffs = work.global_cutoffs()
    shared = work.shared_codebooks(cutoffs)
    rows: list[TensorRow] = []
    tensors: dict[str, Typed] = {}
    executor = ThreadPoolExecutor(threads)
    try:
        waiting = iter(checkpoint.entries)
        ahead = [executor.submit(work.tensor, n, cutoffs, shared) for n in islice(waiting, threads)]
        while ahead:
            typed, row = ahead.pop(0).result()
            tensors[row.name] = typed
            rows.append(row)
            work.advance("compressing", row.dense_nbytes, work.nbytes)
            for name in islice(waiting, 1):
                ahead.append(executor.submit(work.tensor, name, cutoffs, shared))
    finally:
        executor.shutdown(cancel_futures=True)
    for name, first in checkpoint.aliases.items():
        tensors[name] = tensors[first]
    nbytes = write(target, tensors, metadata=checkpoint.metadata, codes=work.goal == "size")
    return FileReport(
        rows=tuple(rows),
        aliases=checkpoint.aliases,
        source_nbytes=os.path.getsize(source),
        target_nbytes=nbytes,
        left_out=checkpoint.left_out,
    )


@dataclass
class _Work:
    """The rules of one run, and what each step does to one tensor."""

    checkpoint: Checkpoint
    plan: Plan
    goal: Goal
    layout: str
    coder: str
    progress: Progress | None
    rules: dict[str, Rule] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the rule of each tensor, and let wrong names fail before anything is read."""
        if self.plan.goal is not None:
            self.goal = "size" if self.plan.goal == "size" else "speed"
        found = layers_of(self.checkpoint)
        resolved = self.plan.resolve(list(found.values()))
        for name, (layer, kind) in found.items():
            if layer in resolved:
                self._take(name, layer, kind, resolved[layer])
        self._check(self.layout, self.coder)
        for name, rule in self.rules.items():
            self._check(*self._pair(name))
            if rule.pruner is not None and rule.pruner not in PRUNERS:
                names = ", ".join(PRUNERS)
                raise ValueError(f"prune: pruner is {rule.pruner!r}, expected one of {names}")
            if rule.quantizer is not None:
                quantize_arrays({"": np.zeros(1, np.float32)}, rule.quantizer, rule.k)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(entry.nbytes for entry in self.checkpoint.entries.values())

    def advance(self, what: str, nbytes: int, total: int) -> None:
        """Tell that `nbytes` more are done."""
        self.done[what] = self.done.get(what, 0) + nbytes
        if self.progress is not None:
            self.progress(what, self.done[what], total)

    def global_cutoffs(self) -> dict[str, Cutoff]:
        """Return the cutoffs of the layers that are ranked with others."""
        groups: dict[tuple[str | None, float], list[str]] = {}
        if self.plan.pruning_scope == "global":
            for name, rule in self.rules.items():
                if rule.sparsity is not None:
                    groups.setdefault((rule.pruner, rule.sparsity), []).append(name)
        cutoffs: dict[str, Cutoff] = {}
        total = 2 * self._nbytes_of([name for names in groups.values() for name in names])
        for (_, sparsity), names in groups.items():

            def read(names: list[str] = names) -> Iterator[tuple[str, F32]]:
                for name in names:
                    yield name, self._values(name)
                    self.advance("ranking", self.checkpoint.entries[name].nbytes, total)

            cutoffs |= global_cutoffs(read, sparsity=sparsity)
        return cutoffs

    def shared_codebooks(self, cutoffs: dict[str, Cutoff]) -> dict[str, Quantized]:
        """Return, for layers that share a codebook, the results for their kept weights, flat."""
        groups: dict[str, list[str]] = {}
        if self.plan.codebook_scope == "kind":
            for name, rule in self.rules.items():
                if rule.quantizer is not None:
                    groups.setdefault(self.kinds[name], []).append(name)
        groups = {kind: names for kind, names in groups.items() if len(names) > 1}
        total = self._nbytes_of([name for names in groups.values() for name in names])
        shared: dict[str, Quantized] = {}
        for kind, names in groups.items():
            self._check_alike(kind, names)
            kept = {}
            for name in names:
                values = self._values(name)
                kept[name] = values[self._mask(name, values, cutoffs)]
                self.advance("sharing", self.checkpoint.entries[name].nbytes, total)
            shared |= self._quantize(
                kept, kind, {n: np.ones(v.size, bool) for n, v in kept.items()}
            )
        return shared

    def tensor(
        self, name: str, cutoffs: dict[str, Cutoff], shared: dict[str, Quantized]
    ) -> tuple[Typed, TensorRow]:
        """Return one tensor as it is to be written, and what became of it."""
        entry = self.checkpoint.entries[name]
        row = TensorRow(name, entry.dtype, entry.shape, entry.nbytes, entry.nbytes)
        if not _can_be_matrix(entry.dtype, entry.shape):
            return self._plain(self.checkpoint.get(name), row)
        values = self._values(name)
        rule = self.rules.get(name, Rule())
        quantized = None
        if rule.quantizer is not None:
            mask = self._mask(name, values, cutoffs)
            quantized = (
                _spread(shared[name], mask)
                if name in shared
                else self._quantize({name: values}, self._seed_name(name), {name: mask})[name]
            )
            values = quantized.values()
            row = replace(row, dropped=quantized.dropped)
        elif rule.prunes:
            values = np.where(self._mask(name, values, cutoffs), values, np.float32(0))
        array = dtypes.narrowed(values, entry.dtype).reshape(entry.shape)
        pair = self._pair(name)
        plain = self._plain(array, row) if quantized is None and pair[0] == "auto" else None
        try:
            matrix = self._matrix(values, quantized, pair, taps(entry.shape))
            if pair == ("auto", "auto") and self.goal == "size":
                matrix = archived(matrix, entry.shape)
            if matrix.nbytes < (entry.nbytes if plain is None else plain[1].nbytes):
                row = replace(row, nbytes=matrix.nbytes, nnz=matrix.nnz, k=len(matrix.codebook))
                row = replace(row, layout=matrix.layout, coder=matrix.coder)
                return Typed(matrix, entry.dtype, entry.shape, object()), row
            reason = f"it takes {matrix.nbytes:,} bytes compressed"
        except ValueError as error:
            reason = str(error)
        stored, plain_row = plain or self._plain(array, row)
        return stored, replace(plain_row, reason=reason)

    def _plain(self, array: Array, row: TensorRow) -> tuple[Typed, TensorRow]:
        """Return a tensor that is no matrix, coded for the goal "size" where that is smaller."""
        value = coded(array, row.dtype) if self.goal == "size" else array
        if isinstance(value, CodedArray):
            row = replace(row, nbytes=value.nbytes, coder="planes")
        return Typed(value, row.dtype, row.shape, object()), row

    def _take(self, name: str, layer: str, kind: str, rule: Rule) -> None:
        """Remember the rule of a tensor under its first name; its other names must agree."""
        first = self.checkpoint.aliases.get(name, name)
        if first in self.rules and self.rules[first] != rule:
            raise ValueError(
                f"plan: layers {self.layers[first]!r} and {layer!r} share one weight, "
                "found two rules for it, expected the same"
            )
        if first not in self.rules:
            self.rules[first], self.kinds[first], self.layers[first] = rule, kind, layer

    def _seed_name(self, name: str) -> str:
        """Return what a layer's random numbers depend on beside the seed."""
        is_shared = self.plan.codebook_scope == "kind"
        return self.kinds[name] if is_shared else self.layers[name]

    def _pair(self, name: str) -> tuple[str, str]:
        return self.rules.get(name, Rule()).pair(self.layout, self.coder)

    def _check(self, layout: str, coder: str) -> None:
        CompressedMatrix.compress(np.zeros((1, 1), np.float32), layout, coder, self.goal)

    def _check_alike(self, kind: str, names: Sequence[str]) -> None:
        first = names[0]
        for name in names[1:]:
            for what in ("quantizer", "k", "lam"):
                found = tuple(getattr(self.rules[n], what) for n in (first, name))
                self._check_equal(kind, (first, name), what, found)
            found = tuple(self.checkpoint.entries[n].dtype for n in (first, name))
            self._check_equal(kind, (first, name), "dtype", found)

    def _check_equal(
        self, kind: str, names: tuple[str, str], what: str, found: tuple[object, ...]
    ) -> None:
        if found[0] != found[1]:
            raise ValueError(
                f"quantize: layers {self.layers[names[0]]!r} and {self.layers[names[1]]!r} share "
                f"the codebook of kind {kind}, found {what} {found[0]} and {found[1]}, "
                "expected the same"
            )

    def _nbytes_of(self, names: Sequence[str]) -> int:
        return sum(self.checkpoint.entries[name].nbytes for name in names)

    def _values(self, name: str) -> F32:
        """Return a tensor as float32 [shape[0], everything else], aligned and contiguous."""
        entry = self.checkpoint.entries[name]
        values = dtypes.widened(self.checkpoint.get(name), entry.dtype)
        if values is None:
            raise ValueError(f"{name}: found a {entry.dtype} that float32 cannot hold")
        return np.require(values.reshape(entry.shape[0], -1), np.float32, ("C", "A"))

    def _mask(self, name: str, values: F32, cutoffs: dict[str, Cutoff]) -> Mask:
        """Return which weights stay: what the pruner keeps, or what is not zero."""
        rule = self.rules[name]
        if name in cutoffs:
            return cutoffs[name].mask(values)
        if not rule.prunes:
            mask: Mask = values != 0
            return mask
        prune = PRUNERS[rule.pruner or "magnitude"]
        return prune({name: values}, sparsity=rule.sparsity, threshold=rule.threshold)[name]

    def _quantize(
        self, arrays: dict[str, F32], key: str, masks: dict[str, Mask]
    ) -> dict[str, Quantized]:
        """Return the results for arrays that share a codebook, its values exact in their dtype."""
        first = next(iter(arrays))
        rule, dtype = self.rules[first], self.checkpoint.entries[first].dtype
        assert rule.quantizer is not None
        seed = layer_seed(self.plan.seed, key)
        lam = rule.lam if rule.quantizer == "ecsq" else None
        try:
            results = quantize_arrays(
                arrays, rule.quantizer, rule.k, masks=masks, seed=seed, lam=lam
            )
        except ValueError as error:
            raise ValueError(f"{', '.join(arrays)}: {error}") from error
        rounded = {}
        for name, q in results.items():
            codebook = dtypes.widened(dtypes.narrowed(q.codebook, dtype), dtype)
            assert codebook is not None
            if not np.array_equal(codebook, q.codebook):
                before, many = q.dropped, len(results) > 1
                q = Quantized.of(codebook, q.symbols, q.mask, keep_unused=many)
                q = replace(q, dropped=q.dropped + before)
            rounded[name] = q
        return rounded

    def _matrix(
        self, values: F32, quantized: Quantized | None, pair: tuple[str, str], ntaps: int | None
    ) -> CompressedMatrix:
        if quantized is None:
            return CompressedMatrix.compress(values, *pair, self.goal, taps=ntaps)
        codebook = Codebook(quantized.codebook)
        return CompressedMatrix.from_symbols(
            quantized.symbols, codebook, quantized.mask, *pair, self.goal, taps=ntaps
        )


def _can_be_matrix(dtype: str, shape: tuple[int, ...]) -> bool:
    return dtype in dtypes.MATRIX_NAMES and 2 <= len(shape) <= _MAX_NDIM and 0 not in shape


def _spread(flat: Quantized, mask: Mask) -> Quantized:
    """Return the result for a whole array, from that for its kept weights."""
    symbols = np.zeros(mask.shape, np.uint16)
    symbols[mask] = flat.symbols
    stays = mask.copy()
    stays[mask] = flat.mask
    return Quantized(flat.codebook, symbols, stays, dropped=flat.dropped)
