"""The size of the weights in every way of counting, side by side.

Papers count the bits of what is not zero, without positions, codebooks, biases and the graph; a
file has to hold all of them. One number alone says little.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from energy_model.errors import ExportError, ParityError
from energy_model.units import format_bytes
from passes.joint.sizes import authors_bits, entropy_bits
from transform.limits import Subject
from transform.text import table


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a finished model.

    Attributes:
        dense_bits: Bits of all weights of the original at their own precision.
        nominal_bits: Nonzeros times the bits of their layer: what the limit `weight_bits` counts.
        authors_bits: Nonzeros times the logarithm of how many values are in use (Yang, Gui, Zhu,
            Liu, CVPR 2020, as their programs report it).
        entropy_bits: Positions, codes and codebooks at their entropy: what weights alone take if
            nothing is known about them but how often each value occurs.
        archive_bytes: The packed file as a whole; `None` where the model has no ONNX form.
        onnx_bytes: The ONNX file in it.
        original_bytes: The ONNX file of the original; `None` if it was not written.
    """

    dense_bits: int
    nominal_bits: int
    authors_bits: float
    entropy_bits: float
    archive_bytes: int | None = None
    onnx_bytes: int | None = None
    original_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sizes:
        """Read what `to_dict` wrote."""
        return cls(**data)

    def __str__(self) -> str:
        rows = [
            ["nominal, as papers count", *self._of(self.nominal_bits)],
            ["codes in use, as authors report", *self._of(self.authors_bits)],
            ["entropy, with positions and codebooks", *self._of(self.entropy_bits)],
        ]
        whole = self.original_bytes
        if self.archive_bytes is not None:
            rate = f"{whole / self.archive_bytes:.1f}x" if whole else ""
            rows.append(["archive, everything included", f"{self.archive_bytes:,} bytes", rate])
        if self.onnx_bytes is not None:
            rate = f"{whole / self.onnx_bytes:.1f}x" if whole else ""
            rows.append(["ONNX file", format_bytes(self.onnx_bytes), rate])
        return table(["size", "", "smaller"], rows)

    def _of(self, bits: float) -> tuple[str, str]:
        rate = f"{self.dense_bits / bits:.1f}x" if bits else ""
        return f"{bits:,.0f} bits", rate


def count_sizes(subject: Subject, dense_bits: int, original_bytes: int | None) -> Sizes:
    """Count a finished model in every way.

    Args:
        subject: The finished model.
        dense_bits: Bits of all weights of the original.
        original_bytes: The original's ONNX file, if it was written.
    """
    graph = subject.graph
    weights = [graph.weight(site) for site in graph.compressible]
    rows = [subject.costs[site.name] for site in graph.compressible]
    archive: int | None = None
    onnx: int | None = None
    # Then there is no file whose size could be told; an export says why.
    with contextlib.suppress(ExportError, ParityError):
        archive, onnx = subject.archive_bytes, subject.onnx_bytes
    return Sizes(
        dense_bits,
        sum(int(row.nonzeros * row.bits) for row in rows),
        sum(authors_bits(weight) for weight in weights),
        sum(entropy_bits(weight) for weight in weights),
        archive,
        onnx,
        original_bytes,
    )
