"""Frames of a movie analysed ahead of their turn by other processes.

Most of an analysis is Python and small matrices, which threads of one process cannot share out. Where the system
can fork, a child starts with the loaded model in its memory and without any delay.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from .analysis import FrameAnalysis
from .errors import StemdlError
from .frames import Frame, FrameSequence

#: Shorter movies are done before processes pay; frames in work for every process; a frame that takes longer is
#: analysed here [s].
_SHORTEST, _IN_WORK, _PATIENCE_S = 8, 2, 300.0

#: Option of the Linux call prctl: a signal for when the parent has died.
_PR_SET_PDEATHSIG = 1

_analyze: Callable[[Frame], FrameAnalysis] | None = None


def processors() -> int:
    """Number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _begin() -> None:
    # The parent decides what an interrupt means, and its children do not outlive it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Threads of the numerical libraries do not survive a fork: the child uses none.
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)


def _work(frame: Frame) -> FrameAnalysis | str:
    assert _analyze is not None
    try:
        return _analyze(frame)
    except StemdlError as error:
        return str(error)


class Ahead:
    """Analyses of the frames of a movie, in order, some of them begun before they are asked for.

    Parameters
    ----------
    sequence : FrameSequence
    analyze : callable
        ``analyze(frame)``; has to depend on the frame alone.
    first : int
        Number of the first frame that is wanted.
    workers : int
        Processes; with 1, or where the system cannot fork, frames are left to the caller.
    """

    def __init__(self, sequence: FrameSequence, analyze: Callable[[Frame], FrameAnalysis], *, first: int = 0,
                 workers: int = 1) -> None:  # fmt: skip
        self._sequence, self._analyze = sequence, analyze
        self._workers = workers if sys.platform == "linux" and len(sequence) - first >= _SHORTEST else 1
        self._next = first
        self._queue: deque[tuple[int, Callable[[], Frame], Future[Any] | None]] = deque()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Ahead:
        global _analyze
        if self._workers > 1:
            _analyze = self._analyze
            context = multiprocessing.get_context("fork")
            self._pool = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_begin)
        return self

    def __exit__(self, *error: object) -> None:
        global _analyze
        _analyze = None
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def get(self, number: int) -> tuple[Callable[[], Frame], FrameAnalysis | str | None]:
        """How to read a frame, and what was found in it, or why it could not be analysed; None if nobody tried.

        Frames are asked for in order. Reading raises what reading the sequence raises.
        """
        self._fill(number)
        if not self._queue or self._queue[0][0] != number:
            return (lambda: self._sequence[number]), None
        _, read, future = self._queue.popleft()
        if future is None:
            return read, None
        try:
            return read, future.result(timeout=_PATIENCE_S)
        except (OSError, RuntimeError, TimeoutError):
            self._give_up()
            return read, None

    def _give_up(self) -> None:
        """A process was killed, or there is no memory for another: go on without."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
        self._queue.clear()

    def _fill(self, number: int) -> None:
        if self._pool is None:
            return
        while self._next < len(self._sequence) and self._next <= number + _IN_WORK * self._workers:
            index, future = self._next, None
            self._next += 1
            try:
                frame = self._sequence[index]
            except StemdlError as error:
                self._queue.append((index, _raising(error), None))
                continue
            try:
                with warnings.catch_warnings():
                    # The child runs nothing that holds locks of the parent's threads.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    future = self._pool.submit(_work, frame)
            except (OSError, RuntimeError):
                self._give_up()
                return
            self._queue.append((index, _returning(frame), future))


def _raising(error: StemdlError) -> Callable[[], Frame]:
    def read() -> Frame:
        raise error

    return read


def _returning(frame: Frame) -> Callable[[], Frame]:
    return lambda: frame
