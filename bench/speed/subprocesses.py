"""Fresh Python processes, with the compiler importable and nothing else changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.errors import BenchError

_ROOT = Path(__file__).resolve().parent.parent.parent
_TAIL_LINES = 8


def run_python(*arguments: str, timeout: float = 600.0) -> str:
    """Run this Python in a new process.

    Args:
        arguments: After the interpreter's name, e.g. `"-c", "print(1)"`.
        timeout: Seconds to wait.

    Returns:
        What it printed.

    Raises:
        BenchError: It failed or did not end in time; the end of its standard error is quoted.
    """
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # -P: the current folder must not come before the packages.
    command = [sys.executable, "-P", *arguments]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=timeout
        )
    except subprocess.CalledProcessError as error:
        tail = "\n".join(error.stderr.splitlines()[-_TAIL_LINES:])
        raise BenchError(
            f"python {' '.join(arguments)} ended with exit code {error.returncode}",
            stderr=tail,
            remedy="Run that command by itself.",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(
            f"python {' '.join(arguments)} did not end within {timeout:g} s",
            remedy="Free the machine, or look why it hangs.",
        ) from error
    return done.stdout
