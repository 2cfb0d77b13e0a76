"""An analysis in a process of its own, for programs that have to stay responsive.

Most of an analysis is Python and small matrices: in the process of a graphical program its threads and those of the
analysis wait for each other, and a frame takes three times as long as it would alone. Another process shares nothing
but the processor. Frames go to it, and results come back, through its standard input and output; it ends when they
close.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from .analysis import FrameAnalysis
from .errors import StemdlError
from .frames import Frame

_HEAD = struct.Struct(">Q")
#: What the other process runs: this package, wherever it is installed.
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from stemdl_core.analyst import serve; serve()"


class AnalystError(RuntimeError):
    """The other process cannot be started, or has ended."""


def interpreter() -> str | None:
    """The Python that this program runs on; None where there is none to be found (frozen programs)."""
    folder = Path(sys.exec_prefix)
    for path in (Path(sys.executable or ""), folder / "bin/python3", folder / "bin/python", folder / "python.exe"):
        if path.name.lower().startswith("python") and path.is_file():
            return str(path)
    return None


class Analyst:
    """Another process that analyses frames, one after the other.

    Parameters
    ----------
    threads : int
        Threads of its numerical libraries.

    Raises
    ------
    AnalystError
        If there is no Python to start it with, or the system refuses.
    """

    def __init__(self, *, threads: int = 1) -> None:
        python = interpreter()
        if python is None:
            raise AnalystError("no Python interpreter found")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        try:
            self._process = subprocess.Popen(
                [python, "-c", _PROGRAM, str(Path(__file__).resolve().parent.parent)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0))
        except OSError as error:
            raise AnalystError(str(error)) from error
        self._lock = threading.Lock()

    def analyze(self, frame: Frame, *, model: str, device: str = "cpu", dopant: str | None = None) -> FrameAnalysis:
        """As `pipeline.analyze_frame`, with a model by name or folder, which is loaded at its first use.

        Raises
        ------
        StemdlError
            What the analysis raises.
        AnalystError
            If the other process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                _send(self._process.stdin, (frame, model, device, dopant))
                answer = _receive(self._process.stdout)
            except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
                raise AnalystError("the process of the analysis has ended") from error
        if isinstance(answer, FrameAnalysis):
            return answer
        kind, text = answer
        raise StemdlError(text) if kind == "refused" else RuntimeError(text)

    def close(self) -> None:
        """End the other process; an analysis that is under way fails."""
        with contextlib.suppress(OSError):
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None and not self._lock.locked():
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5.0)


def _send(pipe: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_HEAD.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    head = pipe.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise EOFError
    data = pipe.read(_HEAD.unpack(head)[0])
    return pickle.loads(data)


def serve() -> None:
    """Analyse what comes in through the standard input until it closes. The other process's main program."""
    # What libraries print must not get between the results.
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from .pipeline import analyze_frame
    from .weights import load_model

    models: dict[tuple[str, str], Any] = {}
    while True:
        try:
            frame, name, device, dopant = _receive(incoming)
        except (EOFError, OSError):
            return
        try:
            if (name, device) not in models:
                models[name, device] = load_model(name, device=device)
            answer: Any = analyze_frame(frame, models[name, device], dopant=dopant)
        except StemdlError as error:
            answer = ("refused", str(error))
        except Exception as error:
            answer = ("failed", f"{type(error).__name__}: {error}")
        try:
            _send(outgoing, answer)
        except OSError:
            return
