"""Ranges of quantizers of activations, from unlabelled data.

One pass over the data in evaluation mode fills a histogram for every quantizer: memory does not
depend on the number of batches, and the result not on their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.fx import GraphModule, Interpreter, Node

from energy_model.config import Config
from energy_model.errors import PreconditionError
from passes.graph import Decision, ModelGraph
from passes.inputs import Call
from passes.isolation import evaluating, untouched
from passes.quantize.activations import ActivationQuantizer
from passes.quantize.histogram import Histogram
from passes.quantize.placement import CONTAINER, describe, module_of
from passes.tracing.symbolic import placeholder_values

ObserverName = Literal["minmax", "percentile", "mse"]
OBSERVERS = ("minmax", "percentile", "mse")

# Shares of the range of all values that `mse` tries, and changes of either end afterwards.
_SHARES = torch.logspace(0, -10, 81, base=2.0, dtype=torch.float64)
_CHANGES = torch.logspace(-0.125, 0.125, 17, base=2.0, dtype=torch.float64)
_ROUNDS = 2
# How far the largest value lies beyond almost all others when the range is said to be an outlier's.
_OUTLIER, _ALMOST_ALL = 100.0, 0.999


@dataclass(frozen=True)
class Observer(Config):
    """How the range of a quantizer is chosen.

    Attributes:
        kind: `"minmax"`: all values; `"percentile"`: a share of them at either end; `"mse"`: the
            range with the least squared error of what is rounded and clipped.
        percentile: The share in percent, for `"percentile"`.
    """

    kind: ObserverName = "percentile"
    percentile: float = 99.999

    def __post_init__(self) -> None:
        self._require("kind", self.kind in OBSERVERS, f"one of {OBSERVERS}")
        share = self.percentile
        real = isinstance(share, int | float) and not isinstance(share, bool)
        self._require("percentile", real and 50 < share <= 100, "a number above 50, up to 100")

    def range(self, found: Histogram, steps: int) -> tuple[float, float]:
        """The range for the values that were found.

        Args:
            found: Their histogram.
            steps: Levels of the quantizer, less one.
        """
        low, high = found.low, found.high
        if self.kind == "percentile":
            share = self.percentile / 100
            low, high = found.quantile(1 - share), found.quantile(share)
        elif self.kind == "mse":
            low, high = _least_error(found, steps)
        # Where almost all values are zero, the others are all there is.
        return (found.low, found.high) if low == high == 0.0 else (low, high)


@torch.no_grad()
def calibrate(
    graph: ModelGraph, batches: Iterable[Call], observer: Observer | None = None
) -> list[Decision]:
    """Set the ranges of the quantizers in a graph; what they had before does not count.

    Args:
        graph: A graph with quantizers, as `insert_quantizers` leaves it.
        batches: Unlabelled calls, on the device of the model.
        observer: How ranges are chosen.

    Returns:
        What was done, and what looks strange about the data.

    Raises:
        PreconditionError: There is no batch, the model fails on one, or an activation is not
            finite; nothing is changed then.
    """
    module, observer = module_of(graph), observer or Observer()
    nodes = _first_calls(module)
    found = {node: Histogram() for node in nodes}
    count = samples = 0
    with untouched(module), evaluating(module):
        for quantizer in nodes.values():
            quantizer.ready.fill_(False)  # put back together with all other buffers
        for call in batches:
            count += 1
            samples += 1 if call.batch_size is None else call.batch_size
            _observe(module, call, found)
            _check_finite(found, count)
    if not samples:
        raise PreconditionError(
            f"there is no {'sample' if count else 'batch'} to calibrate activations with",
            where="data",
            remedy="Pass data= (labels are not needed), or quantize weights alone: "
            "activations=None.",
        )
    ranges = {n: observer.range(found[n], q.high - q.low) for n, q in nodes.items()}
    for node, quantizer in nodes.items():
        quantizer.set_range(*ranges[node])
    data = f"{samples} samples in {count} batches"
    why = f"{observer.kind} of {data}"
    if observer.kind == "percentile":
        why = f"{observer.percentile:g} % at either end, {data}"
    return [Decision("", "activations calibrated", why), *_remarks(found, ranges, samples)]


def _first_calls(module: GraphModule) -> dict[Node, ActivationQuantizer]:
    """Every quantizer, by the node that calls it first."""
    found: dict[str, Node] = {}
    for node in module.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith(f"{CONTAINER}."):
            found.setdefault(str(node.target), node)
    pairs = ((node, module.get_submodule(path)) for path, node in found.items())
    return {node: part for node, part in pairs if isinstance(part, ActivationQuantizer)}


class _Observer(Interpreter):
    """Counts what quantizers read."""

    def __init__(self, module: GraphModule, found: Mapping[Node, Histogram]) -> None:
        super().__init__(module)
        self.found = found

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        if n in self.found:
            self.found[n].add(self.env[n.args[0]])  # type: ignore[index]
        return super().run_node(n)


def _observe(module: GraphModule, call: Call, found: Mapping[Node, Histogram]) -> None:
    torch.manual_seed(0)  # inside a fork of the random state
    try:
        _Observer(module, found).run(*placeholder_values(module, call.fresh()))
    except Exception as error:
        raise PreconditionError(
            f"the model fails on a batch of data: {type(error).__name__}: {_first_line(error)}",
            where="data",
            remedy="Every batch must be one that the model accepts, as the example inputs are.",
        ) from error


def _first_line(error: Exception) -> str:
    """What happened; where the graph was, which the interpreter adds, says little to a user."""
    return next(iter(str(error).splitlines()), "")


def _check_finite(found: Mapping[Node, Histogram], number: int) -> None:
    for node, histogram in found.items():
        if histogram.strange:
            raise PreconditionError(
                f"{histogram.strange} activations are not finite in batch {number}",
                where=_layer(node),
                remedy="Check the data and the weights: nothing can be calibrated with them.",
            )


def _layer(node: Node) -> str:
    """What a quantizer reads, for people."""
    source = node.args[0]
    assert isinstance(source, Node)
    return describe(source)


def _remarks(
    found: Mapping[Node, Histogram], ranges: Mapping[Node, tuple[float, float]], samples: int
) -> list[Decision]:
    remarks = []
    if samples == 1:
        why = "its ranges need not hold for any other: pass some hundred samples"
        remarks.append(Decision("", "calibrated with a single sample", why))
    for node, histogram in found.items():
        low, high = ranges[node]
        largest, most = max(-low, high), histogram.magnitude(_ALMOST_ALL)
        if histogram.low == histogram.high:
            why = f"every value is {histogram.low:.6g}; the range is from that to zero"
            remarks.append(Decision(_layer(node), "constant activation", why))
        elif largest > _OUTLIER * most > 0:
            why = (
                f"the range goes up to {largest:.4g}, {100 * _ALMOST_ALL:g} % are below "
                f"{most:.4g}, which leaves them few levels: observer='percentile' clips it, with "
                "few samples at percentile=99.9"
            )
            remarks.append(Decision(_layer(node), "outlier in the activations", why))
    return remarks


def _least_error(found: Histogram, steps: int) -> tuple[float, float]:
    """Ends that share their distance from zero first, then each for itself."""
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    if low == high:
        return low, high
    pair = _best(found, torch.stack([low * _SHARES, high * _SHARES], 1), steps)
    for end in (0, 1) * _ROUNDS:
        tried = pair.expand(len(_CHANGES), 2).clone()
        tried[:, end] *= _CHANGES
        tried = tried.clamp(low, high)
        pair = _best(found, tried, steps)
    return float(pair[0]), float(pair[1])


def _best(found: Histogram, ranges: torch.Tensor, steps: int) -> torch.Tensor:
    """The range with the least squared error; `(n, 2)` to `(2,)`."""
    values, counts = found.occupied()
    scale = ((ranges[:, 1] - ranges[:, 0]) / steps).clamp_min(1e-30)[:, None]
    zero = torch.round(-ranges[:, :1] / scale).clamp(0, steps)
    levels = ((torch.round(values / scale) + zero).clamp(0, steps) - zero) * scale
    errors = (levels - values).square() @ counts
    return ranges[int(errors.argmin())]
