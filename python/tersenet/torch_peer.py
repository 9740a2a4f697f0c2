"""A model of torch's, to measure beside a network from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from tersenet.dtypes import Array
from tersenet.importing import imported


class TorchPeer:
    """A model that is called with arrays, in evaluation mode and without gradients."""

    def __init__(self, model: nn.Module) -> None:
        """Take a model, on the CPU."""
        self._model = model.eval()
        self._threads = torch.get_num_threads()
        tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
        self.nbytes = sum(t.numel() * t.element_size() for t in tensors.values())

    @classmethod
    def load(cls, name: str) -> Self:
        """Import a model, given as "module:attribute", the module from the working folder too.

        The attribute is a model, or makes one when it is called without arguments. The module's
        code runs.

        Raises:
            ValueError: if there is no such module or attribute, or it gives no model.
        """
        found = imported(name, "--torch", "MODULE:MODEL, as in networks:make_model")
        if callable(found) and not isinstance(found, nn.Module):
            try:
                found = found()
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                raise ValueError(f"--torch {name}: calling it without arguments: {what}") from error
        if isinstance(found, nn.Module):
            return cls(found)
        what = type(found).__name__
        raise ValueError(f"--torch {name}: found {what}, expected a model of torch's")

    def call(self, arrays: Sequence[Array], threads: int) -> Callable[[], Any]:
        """Set torch's threads, and return the model's call on these arrays, which gives arrays.

        Raises:
            ValueError: if the model does not take them, or returns something else than tensors.
        """
        torch.set_num_threads(threads)
        tensors = [torch.from_numpy(array) for array in arrays]

        def call() -> Any:
            with torch.inference_mode():
                result = self._model(*tensors)
            if isinstance(result, Tensor):
                return result.numpy()
            return tuple(tensor.numpy() for tensor in result)

        try:
            call()
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"--torch: the model fails on the network's inputs: {what}") from error
        return call

    def restore(self) -> None:
        """Give torch back the threads that it had."""
        torch.set_num_threads(self._threads)
