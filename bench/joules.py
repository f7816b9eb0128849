"""Measured energy of the CPU packages, through zeus where it is installed and finds counters.

Counters (RAPL) count everything that the packages do, other processes and idle power included.
Where there is none the answer is None: neither 0 nor an estimate from time.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class JouleMeter:
    """Energy counters of the CPU packages, read around a block of work."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def begin(self) -> None:
        """Start a window."""
        self._monitor.begin_window("bench", sync_execution=False)

    def end(self) -> float | None:
        """Joules since `begin`, packages and their memory; None when no counter moved."""
        window = self._monitor.end_window("bench", sync_execution=False)
        packages = sum((window.cpu_energy or {}).values())
        if packages <= 0:
            return None
        return float(packages + sum((window.dram_energy or {}).values()))


def open_meter() -> JouleMeter | None:
    """A meter, or None when zeus (the extra `zeus`) is absent or finds no counters."""
    try:
        monitor = import_module("zeus.monitor").ZeusMonitor(gpu_indices=[])
    except (ImportError, OSError, RuntimeError):
        return None
    return JouleMeter(monitor) if monitor.cpu_indices else None
