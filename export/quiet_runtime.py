"""ONNX Runtime, which reports its use from version 1.29 on unless it is told not to."""

from __future__ import annotations

import importlib
import os
from typing import Any


def import_onnxruntime() -> Any:
    """ONNX Runtime, imported so that it neither reports anything nor names this machine in a file.

    What the environment says already counts: `ORT_DISABLE_TELEMETRY=0` lets it report. It reads
    that when it is first imported in a process.

    Raises:
        ImportError: It is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module("onnxruntime")
