"""The value of every limit, for the original and for the finished model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energy_model.cost import CostTable
from energy_model.errors import UnsupportedBudget
from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit
from energy_model.timing import Timing
from passes.analysis.costs import cost_table
from passes.analysis.memory import peak_activation_bytes
from passes.graph import ModelGraph
from passes.structure.costs import LATENCY
from transform.stopwatch import measure_file

if TYPE_CHECKING:
    from export.dense import Written


@dataclass(frozen=True, slots=True)
class Value:
    """One counted or measured value.

    Attributes:
        number: The value, in the unit of its limit.
        kind: `"exact"` or `"measured"`.
        measurement: Median, spread, threads, batch, runtime of a measured value.
    """

    number: int | float
    kind: str = "exact"
    measurement: dict[str, Any] | None = None


@dataclass
class Subject:
    """A model whose limits are to be counted, once each.

    Attributes:
        graph: The traced model.
        hardware: The accelerator of the energy model.
        file: Its exported file, if there is one; made on demand otherwise.
        limits: The budget: where the dense file exceeds a limit on its size, zeros are stored as
            positions and values.
        timed: Knows what was measured before a run was interrupted; `None` measures.
    """

    graph: ModelGraph
    hardware: Hardware
    file: Written | None = None
    limits: Sequence[ResolvedLimit] = ()
    timed: Callable[[Callable[[], Timing]], Timing] | None = None
    _costs: CostTable | None = None
    _folder: Any = field(default=None, repr=False)
    _packed: int | None = None

    @property
    def costs(self) -> CostTable:
        """Costs of the model's sites."""
        if self._costs is None:
            self._costs = cost_table(self.graph, self.hardware)
        return self._costs

    def count_from(self, costs: CostTable) -> None:
        """Use these costs, counted elsewhere, for what follows."""
        self._costs = costs

    @property
    def exported(self) -> Written:
        """The model as ONNX, in a temporary folder unless it was exported before.

        Quantized weights are written as their codes, everything else as floats; under a limit on
        the latency as what is faster.
        """
        if self.file is None:
            from transform.forms import write

            # Of a quantized model the file that is measured is the one that `export` writes.
            timed = any(limit.key == LATENCY for limit in self.limits)
            form = "qdq" if self.graph.encodings and not timed else "auto"
            self._folder = tempfile.TemporaryDirectory(prefix="transform-")
            path = Path(self._folder.name) / "model.onnx"
            self.file = write(self.graph, self.hardware, path, form, self.limits)
        return self.file

    @property
    def onnx_bytes(self) -> int:
        """Bytes of the ONNX file, also of one in an archive."""
        inside = self.exported.inside
        return self.exported.bytes if inside is None else inside.bytes

    def timing(self) -> Timing:
        """What one inference of the exported file takes, measured anew whenever it is asked."""
        if self.timed is None:
            return measure_file(self.exported.path)
        return self.timed(lambda: measure_file(self.exported.path))

    @property
    def archive_bytes(self) -> int:
        """Bytes of the archive of the exported file."""
        file = self.exported
        if file.inside is not None:
            return file.bytes
        if self._packed is None:
            from export.archive import packed_bytes

            self._packed = packed_bytes(file.path.read_bytes())
        return self._packed


def energy(subject: Subject) -> Value:
    """Relaxed energy, in multiples of one MAC."""
    return Value(subject.costs.total.energy.relaxed)


def dense_energy(subject: Subject) -> Value:
    """Relaxed energy with every weight nonzero: the base of relative limits."""
    return Value(subject.costs.total.dense)


def nonzeros(subject: Subject) -> Value:
    """Nonzero weights of the compressible sites; no biases, no norms."""
    return Value(sum(subject.costs[s.name].nonzeros for s in subject.graph.compressible))


def dense_nonzeros(subject: Subject) -> Value:
    """Weights of the compressible sites."""
    return Value(sum(site.size for site in subject.graph.compressible))


def weight_bits(subject: Subject) -> Value:
    """The papers' nominal size: bits of the nonzero weights, without positions."""
    rows = [subject.costs[site.name] for site in subject.graph.compressible]
    return Value(sum(int(row.nonzeros * row.bits) for row in rows))


def dense_weight_bits(subject: Subject) -> Value:
    """Bits of all weights at their stored precision."""
    rows = [subject.costs[site.name] for site in subject.graph.compressible]
    return Value(sum(int(row.weights * row.bits) for row in rows))


def params(subject: Subject) -> Value:
    """All parameters of the model, each tied one once."""
    return Value(sum(p.numel() for p in subject.graph.module.parameters()))


def macs(subject: Subject) -> Value:
    """Multiply-accumulates of one sample, every weight counted."""
    return Value(subject.costs.total.macs)


def sparse_macs(subject: Subject) -> Value:
    """Multiply-accumulates of one sample whose weight is not zero.

    Of a computed weight all count, but for zeros that a file tells. Products of activations have no
    weight, as in `macs`.
    """
    sites = subject.graph.sites
    return Value(sum(subject.costs[s.name].nonzeros * s.macs_per_weight() for s in sites))


def size(subject: Subject) -> Value:
    """Bytes of the ONNX file that the runtime loads."""
    return Value(subject.onnx_bytes)


def archive(subject: Subject) -> Value:
    """Bytes of the packed file."""
    return Value(subject.archive_bytes)


def ram(subject: Subject) -> Value:
    """Peak bytes of live activations."""
    return Value(peak_activation_bytes(subject.graph))


def latency(subject: Subject) -> Value:
    """Median seconds of one inference: batch 1, one thread, ONNX Runtime on the CPU."""
    timing = subject.timing()
    details = {"spread": timing.spread, "noise": timing.noise, **timing.details}
    return Value(timing.seconds, "measured", details)


_BASE: dict[str, Callable[[Subject], Value]] = {
    "energy": dense_energy,
    "nonzeros": dense_nonzeros,
    "weight_bits": dense_weight_bits,
    "params": params,
    "macs": macs,
    "sparse_macs": macs,
    "size": size,
    "archive": size,  # nobody packs the original: shares are of its ONNX file
    "ram": ram,
    "latency": latency,
}
_REACHED: dict[str, Callable[[Subject], Value]] = _BASE | {
    "energy": energy,
    "nonzeros": nonzeros,
    "weight_bits": weight_bits,
    "sparse_macs": sparse_macs,
    "archive": archive,
}


# Limits that cost no export and no measurement.
COUNTED = frozenset({"energy", "nonzeros", "weight_bits", "params", "macs", "sparse_macs"})


def base_value(key: str, subject: Subject) -> Value:
    """The value of the original dense model.

    Raises:
        UnsupportedBudget: Nothing can count this limit yet.
    """
    return _rule(_BASE, key)(subject)


def reached_value(key: str, subject: Subject) -> Value:
    """The value of a finished model."""
    return _rule(_REACHED, key)(subject)


def _rule(rules: dict[str, Callable[[Subject], Value]], key: str) -> Callable[[Subject], Value]:
    if key not in rules:
        raise UnsupportedBudget(
            f"the limit {key!r} cannot be counted: no exporter writes that file yet",
            where="budget",
            remedy=f"Limits that can be counted are {', '.join(rules)}.",
        )
    return rules[key]
