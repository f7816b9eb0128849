"""A measuring subprocess seen from outside: requests, answers, time limits, typed errors."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bench.errors import BenchError

_ROOT = Path(__file__).resolve().parent.parent
_TAIL_LINES = 8


def worker_command() -> list[str]:
    """The command that starts a measuring process."""
    # -P: the user's current folder must not come before this package.
    return [sys.executable, "-P", "-m", "bench.worker"]


class WorkerProcess:
    """One measuring subprocess for one model; a context manager that ends it.

    Args:
        model: Path of the model, for the errors.
        timeout: Seconds to wait for one answer.
    """

    def __init__(self, model: str, timeout: float) -> None:
        self.model = model
        self.timeout = timeout
        paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            worker_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put("")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                # A pipe to a dead process may still hold an unsent request.
                _close(stream)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Args:
            command: Name of the command, see `bench.worker`.
            arguments: Its arguments, plain values.

        Returns:
            The answer.

        Raises:
            BenchError: The process died, did not answer in time, or answered with an error.
        """
        stdin = self._process.stdin
        try:
            print(json.dumps({"command": command, **arguments}), file=stdin, flush=True)
            line = self._lines.get(timeout=self.timeout)
        except queue.Empty as error:
            raise self._error(
                f"no answer to {command!r} within {self.timeout:g} s",
                "Give a longer timeout, or look why the model hangs.",
            ) from error
        except OSError:
            line = ""
        if not line:
            raise self._error(
                f"the measuring process ended during {command!r} ({self._ending()})",
                "Load the file in ONNX Runtime alone to see whether it crashes there too.",
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._error(
                f"{command!r} failed: {answer['error']}", "Check the file and its inputs."
            )
        return answer

    def _ending(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"exit code {code}"
        return f"signal {signal.Signals(-code).name}"

    def _error(self, what: str, remedy: str) -> BenchError:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", errors="replace").splitlines()
        tail = "\n".join(lines[-_TAIL_LINES:])
        return BenchError(what, model=self.model, stderr=tail, remedy=remedy)


def _close(stream: IO[Any]) -> None:
    try:
        stream.close()
    except OSError:
        return
