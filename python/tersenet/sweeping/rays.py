"""Ray behind the interface of `concurrent.futures`: the same sweep on a cluster.

::

    with RayExecutor("auto") as executor:                  # or the address of a cluster
        sweep(make_model, data, space, executor, results="sweep.sqlite")

    put     the object store, one copy a node that asks for it
    submit  a Ray task, which Ray runs again where its worker or node dies

Tasks are plain functions, so what they need (tersenet, and the modules of model and data) must be
installed on every node. An answer is small and goes straight to this process, so a node that dies
later takes none along.

Price: Ray starts in some 10 s, a task costs about 1.5 ms.

Source: P. Moritz et al. 2018, "Ray: a distributed framework for emerging AI applications".
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


class RayExecutor(Executor):
    """An executor whose workers are those of a Ray cluster.

    Errors of a task are the task's own. Where Ray gives a task up, because its worker or node died
    more often than `retries`, it is `concurrent.futures.BrokenExecutor`.
    """

    def __init__(
        self, address: str | None = None, *, retries: int = 3, num_cpus: float = 1.0
    ) -> None:
        """Join a cluster, or start one on this machine.

        Args:
            address: "auto" or an address as of `ray.init`; None takes the cluster that this process
                has joined already, or else starts Ray on this machine for as long as this lives.
            retries: how often Ray runs a task again after its worker or node died.
            num_cpus: what a task takes of a node's.

        Raises:
            ImportError: if Ray is not installed.
            ValueError: if this process has joined a cluster already and an address is given.
            ConnectionError: if there is no cluster at the address.
        """
        try:
            import ray
        except ImportError as error:
            raise ImportError(
                "this executor needs Ray: pip install 'tersenet[ray]'", name="ray"
            ) from error
        self._ray = ray
        self._is_own = not ray.is_initialized()
        if self._is_own:
            # A bare init would join whatever cluster was left running on this machine.
            options: dict[str, Any] = {"include_dashboard": False} if address is None else {}
            ray.init(address=address or "local", log_to_driver=False, **options)
        elif address is not None:
            raise ValueError(
                f"ray: address is {address!r}, expected none: this process has joined a cluster"
            )
        self._task: Any = ray.remote(num_cpus=num_cpus, max_retries=retries)(_call)
        self._lock = threading.Lock()
        self._flying: dict[Future[Any], Any] = {}
        self._is_shut = False

    def put(self, data: bytes) -> Stored:
        """Put bytes into the object store, for any number of tasks."""
        return Stored(self._ray.put(data))

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a function on a worker.

        Raises:
            RuntimeError: after `shutdown`.
        """
        if self._is_shut:
            raise RuntimeError("ray: submit after shutdown, expected an executor that runs")
        reference = self._task.remote(fn, args, kwargs)
        future: _RayFuture[T] = _RayFuture(functools.partial(self._ray.cancel, reference))
        with self._lock:
            self._flying[future] = reference
        reference.future().add_done_callback(lambda answer: self._finish(future, answer))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and end Ray if it was started or joined here.

        Args:
            wait: for what was submitted; otherwise it is cancelled.
            cancel_futures: cancel what was submitted.
        """
        self._is_shut = True
        with self._lock:
            flying = list(self._flying)
        if cancel_futures or not wait:
            for future in flying:
                future.cancel()
        wait_for(flying)
        if self._is_own and self._ray.is_initialized():
            self._ray.shutdown()

    def _finish(self, future: Future[Any], answer: Future[Any]) -> None:
        """Give the answer of a task to whoever waits for it."""
        with self._lock:
            self._flying.pop(future, None)
        if not future.set_running_or_notify_cancel():
            return
        error = answer.exception()
        if error is None:
            future.set_result(answer.result())
        else:
            future.set_exception(self._own(error))

    def _own(self, error: BaseException) -> BaseException:
        """Return what a task raised, or that Ray gave it up."""
        if isinstance(error, self._ray.exceptions.RayTaskError):
            cause = getattr(error, "cause", None)
            return cause if isinstance(cause, BaseException) else error
        broken = BrokenExecutor(f"ray: {type(error).__name__}: {error}")
        broken.__cause__ = error
        return broken


@dataclass(frozen=True)
class Stored:
    """Bytes in the object store."""

    reference: Any

    def get(self) -> bytes:
        """Return them, in a task or where they were put."""
        import ray

        data: bytes = ray.get(self.reference)
        return data


class _RayFuture(Future[T]):
    """A future whose task Ray is asked to cancel too."""

    def __init__(self, cancel: Callable[[], object]) -> None:
        super().__init__()
        self._cancel = cancel

    def cancel(self) -> bool:
        is_cancelled = super().cancel()
        if is_cancelled:
            self._cancel()
        return is_cancelled


def _call(fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    return fn(*args, **kwargs)
