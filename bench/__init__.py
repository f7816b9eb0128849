"""Measure exported models, plot what was measured, and check certificates.

Importing this package loads neither torch nor ONNX Runtime nor matplotlib: names are looked up on
first use, so that a measuring subprocess holds nothing but the runtime that it measures. The
function `bench.measure.measure` is not among them: a package cannot hold a module and a function of
one name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.errors import BenchError
    from bench.measurement import Comparison, Measurement, Report
    from bench.plots import plot_energy, plot_latency, plot_sparsity

_HOMES = {
    "BenchError": "bench.errors",
    "Comparison": "bench.measurement",
    "Measurement": "bench.measurement",
    "Report": "bench.measurement",
    "plot_energy": "bench.plots",
    "plot_latency": "bench.plots",
    "plot_sparsity": "bench.plots",
}

__all__ = [
    "BenchError",
    "Comparison",
    "Measurement",
    "Report",
    "plot_energy",
    "plot_latency",
    "plot_sparsity",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
