"""Running trials on an executor: each result at once to whoever keeps it, dead workers replaced.

::

    workers = 0      in this process, one after the other
    no executor      processes of our own, spawned; each reads the work once, from a file without name
    an executor      submit(run_from, source, key, number, settings) for every trial at once; the work
                     is `executor.put` once where there is such a method, else sent with each trial

    a process of ours dies:  its trial is tried again, in a new one; no other trial is touched

Why a pool for each process: when one process of a ProcessPoolExecutor dies, all of it is broken, and
which trial killed it is not told; and of CPython 3.11 one that dies while another starts is waited for
for ever. Why spawned: torch's threads and a fork do not go together. A process ends with the one that
started it, whatever ended that, so a killed sweep leaves nothing running, and no file. Ctrl-C, which a
terminal sends to all of them, is for the one that sweeps: it ends the others.

An executor of somebody else's is not ours to repair. Ray and Dask try again by themselves; where an
executor gives up, so does the sweep, and what is finished is kept.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from tersenet.sweeping.results import Trial
from tersenet.sweeping.space import Settings
from tersenet.sweeping.trial import Work, run, run_from
from tersenet.sweeping.work import key_of_bytes

Done = Callable[[Trial], None]


@dataclass(frozen=True)
class Task:
    """A trial to do; `attempts` have failed because a worker died."""

    number: int
    settings: Settings
    attempts: int = 0


class Runner(Protocol):
    """Runs tasks, until it is closed."""

    def close(self) -> None:
        """End what still runs."""

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """Do all tasks, in any order, and call `done` in this thread as each is finished."""


class Serial:
    """Runs tasks in this process, in order."""

    def __init__(self, work: Work) -> None:
        """Take what every trial starts from."""
        self._work = work

    def close(self) -> None:
        """Nothing runs on."""

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """Do all tasks."""
        for task in tasks:
            try:
                trial = run(self._work, task.number, task.settings)
            except Exception as error:
                error.add_note(_words(task))
                raise
            done(trial)


class Pool:
    """Runs tasks in spawned processes of its own, each made anew where it dies."""

    def __init__(self, work: Work, workers: int, retries: int) -> None:
        """Write the work where processes read it; start none yet.

        Args:
            work: what every trial starts from.
            workers: how many processes, at least 1.
            retries: how often a trial is tried again after its process died.

        Raises:
            OSError: if the work cannot be written.
        """
        data = work.to_bytes()
        self._key = key_of_bytes(data)
        self._retries = retries
        # Without a name, so that it goes when this process does, however that ends.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._file.write(data)
        self._file.flush()
        self._source = _InFile(f"/proc/{os.getpid()}/fd/{self._file.fileno()}")
        self._idle: list[ProcessPoolExecutor | None] = [None] * workers
        self._busy: dict[Future[Trial], ProcessPoolExecutor] = {}

    def close(self) -> None:
        """End the processes, those in the middle of a trial at once."""
        self._file.close()
        for busy in self._busy.values():
            _kill(busy)
        for idle in self._idle:
            if idle is not None:
                idle.shutdown()

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """Do all tasks, with as many under way as there are processes.

        Raises:
            RuntimeError: if a trial's process died more often than it may.
        """
        waiting, flying = deque(tasks), dict[Future[Trial], Task]()
        while waiting or flying:
            while waiting and self._idle:
                task = waiting.popleft()
                flying[self._submit(task)] = task
            wait(flying, return_when=FIRST_COMPLETED)
            self._take_back([future for future in flying if future.done()])
            for task, _ in _harvest(flying, done):
                again = Task(task.number, task.settings, task.attempts + 1)
                if again.attempts > self._retries:
                    raise RuntimeError(
                        f"sweep: the process of a trial was killed, times {again.attempts}, "
                        f"expected at most {self._retries} (too little memory is a usual reason): "
                        f"{_words(task)}"
                    )
                waiting.appendleft(again)

    def _submit(self, task: Task) -> Future[Trial]:
        process = self._idle.pop() or ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_follow_parent
        )
        try:
            with _uninterrupted():  # what is blocked here stays so in a process that this starts
                future = process.submit(
                    run_from, self._source, self._key, task.number, task.settings
                )
        except BrokenExecutor as error:  # it died between two trials
            future = Future()
            future.set_exception(error)
        self._busy[future] = process
        return future

    def _take_back(self, futures: Sequence[Future[Trial]]) -> None:
        """Let processes that ended a trial be idle, and new ones stand in for those that died."""
        for future in futures:
            process = self._busy.pop(future)
            is_dead = isinstance(future.exception(), BrokenExecutor)
            if is_dead:
                process.shutdown()
            self._idle.append(None if is_dead else process)


class Engine:
    """Runs tasks on an executor that somebody else made, and ends."""

    def __init__(self, work: Work, executor: Executor) -> None:
        """Put the work where the executor's workers get it, if it has such a place.

        Args:
            work: what every trial starts from.
            executor: of `concurrent.futures`; its `put`, if there is one, takes bytes and returns
                something picklable whose `get` returns them in a worker.
        """
        data = work.to_bytes()
        self._key = key_of_bytes(data)
        put = getattr(executor, "put", None)
        self._source = _Carried(data) if put is None else put(data)
        self._executor = executor
        self._flying: dict[Future[Trial], Task] = {}

    def close(self) -> None:
        """Cancel what was not begun."""
        for future in self._flying:
            future.cancel()

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """Do all tasks.

        Raises:
            RuntimeError: if the executor is broken.
        """
        submit, flying = self._executor.submit, self._flying
        for task in tasks:
            source, key = self._source, self._key
            flying[submit(run_from, source, key, task.number, task.settings)] = task
        while flying:
            wait(flying, return_when=FIRST_COMPLETED)
            if killed := _harvest(flying, done):
                task, error = killed[0]
                raise RuntimeError(
                    f"sweep: {type(self._executor).__name__} gave up: {error}; {_words(task)}"
                ) from error


@dataclass(frozen=True)
class _InFile:
    """The work, in a file of this machine."""

    path: str

    def get(self) -> bytes:
        with open(self.path, "rb") as file:
            return file.read()


@dataclass(frozen=True)
class _Carried:
    """The work, sent along."""

    data: bytes

    def get(self) -> bytes:
        return self.data


def _words(task: Task) -> str:
    settings = ", ".join(f"{name} = {value}" for name, value in task.settings.items())
    return f"trial {task.number}: {settings}"


def _harvest(flying: dict[Future[Trial], Task], done: Done) -> list[tuple[Task, BrokenExecutor]]:
    """Hand over all trials that are finished; return those whose worker died, with the error.

    An error of a trial itself is raised when all others are handed over.
    """
    killed: list[tuple[Task, BrokenExecutor]] = []
    failed: BaseException | None = None
    for future in [future for future in flying if future.done()]:
        task, error = flying.pop(future), future.exception()
        if error is None:
            done(future.result())
        elif isinstance(error, BrokenExecutor):
            killed.append((task, error))
        else:
            error.add_note(_words(task))
            failed = failed or error
    if failed is not None:
        raise failed
    return killed


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C until the end, whichever thread of this process it reaches."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.getsignal(signal.SIGINT)
    # Where another thread takes the signal, Python runs the handler on the main one all the same.
    is_ours = threading.current_thread() is threading.main_thread() and callable(handler)
    came: list[int] = []
    if is_ours:
        signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def _kill(process: ProcessPoolExecutor) -> None:
    """End the process of a pool of one: its trial is not to be waited for."""
    for each in list((process._processes or {}).values()):
        each.kill()
    process.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Let this process end with the one that sweeps, which may be killed at any time."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow(parent: Any = parent) -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
