"""Count a file again: nonzeros, bits and energy from its initialisers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from energy_model.cost import Cost, CostTable
from energy_model.errors import PostconditionError
from energy_model.hardware import Hardware
from energy_model.input_support import InputSupport
from energy_model.unit_prices import charged_bits
from energy_model.widths import Widths
from export.constant_operators import Array
from export.initializers import Stored
from passes.graph import ModelGraph, Site, Use


@dataclass(frozen=True, slots=True)
class Recount:
    """What a file holds.

    Attributes:
        costs: A row per site, counted from the file where the weight was found in it.
        stored: Where each site's weight lies.
        sha256: Digest of the file.
        size: Its bytes.
        parameters: Elements of all its floating initialisers.
    """

    costs: CostTable
    stored: Mapping[str, Stored]
    sha256: str
    size: int
    parameters: int


def sha256(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def recount_costs(
    graph: ModelGraph, before: CostTable, stored: Mapping[str, Stored], hardware: Hardware
) -> CostTable:
    """Cost every site by the weights in the file.

    Input masks count as the file has them, too. The widths that the graph's uses have are kept
    where the file bears them out: codes that their grid holds, inputs that are dequantized, outputs
    that are quantized and nothing else. Otherwise energy charges what the file has. A grid may be
    stored in a wider type, such as three bits in INT4: `bits` is that of the grid.

    Args:
        graph: The graph, for the geometry and the widths of its sites.
        before: Costs of the same sites counted from the model; kept where the file has no weight.
        stored: Where each weight lies.
        hardware: The accelerator.

    Raises:
        PostconditionError: The file masks other inputs of a convolution than the model does, or a
            weight has a code that its grid does not have.
    """
    rows = [_row(graph, site, before[site.name], stored, hardware) for site in graph.sites]
    return CostTable(tuple(rows), hardware)


def _row(
    graph: ModelGraph, site: Site, row: Cost, found: Mapping[str, Stored], hardware: Hardware
) -> Cost:
    if site.name not in found:
        return row
    stored = found[site.name]
    encoding = graph.encodings.get(site.name)
    bits = stored.bits if encoding is None else _grid_bits(encoding.bits, site, stored)
    if site.name in graph.codebooks:
        bits = _codebook_bits(graph.codebooks[site.name].bits, stored)
    widths = _widths(site, stored)
    uses = (replace(use, widths=widths) for use in _masked_uses(site, stored))
    counted = replace(site, uses=tuple(uses))
    row = replace(row, charged=charged_bits(widths.weights, hardware), widths=widths)
    if site.computed:
        # What it computes is not in the model: only a weight as it is read tells its zeros.
        weight = torch.empty(site.size, device="meta")
        if all(_is_read_as(stored, use) for use in site.uses):
            weight = torch.from_numpy(np.ascontiguousarray(stored.values != 0))
        energy = counted.energy(hardware, weight)
        nonzeros = int(np.count_nonzero(stored.values))
        return replace(row, nonzeros=nonzeros, energy=energy, floor=energy.activations)
    nonzeros = int(np.count_nonzero(stored.values))
    energy = counted.energy(hardware, _counted_weight(graph, site, stored))
    return replace(row, nonzeros=nonzeros, bits=bits, energy=energy, floor=energy.activations)


def _is_read_as(stored: Stored, use: Use) -> bool:
    """Whether a weight's elements are known to lie as a use reads them."""
    shape = use.shape
    rows = (shape.out_per_group * shape.groups, shape.in_channels // shape.groups)
    if shape.transposed:
        rows = (shape.in_channels, shape.out_per_group)
    return shape.is_linear or stored.values.shape == (*rows, *shape.kernel)


def _grid_bits(claimed: int, site: Site, stored: Stored) -> int:
    """Bits of a weight that the model has on a grid."""
    if not stored.coded:
        return stored.bits
    if stored.needed > claimed:
        raise PostconditionError(
            f"a grid of {claimed} bits does not hold the codes in the file, which need "
            f"{stored.needed}",
            where=f"{site.name}, constant {stored.name}",
            remedy="This is an error of the exporter; please report it with the model.",
        )
    return claimed


def _codebook_bits(claimed: int, stored: Stored) -> int:
    """Bits of a weight with a codebook; those of its type if the file has more values."""
    values = np.unique(stored.values[stored.values != 0])
    return claimed if len(values) <= 2**claimed else stored.bits


def _widths(site: Site, stored: Stored) -> Widths:
    """The widths of the site's operands as far as the file bears them out."""
    claimed = site.widths
    return Widths(
        weights=claimed.weights if stored.coded else None,
        inputs=_borne_out(claimed.inputs, [read.inputs for read in stored.reads]),
        outputs=_borne_out(claimed.outputs, [read.outputs for read in stored.reads]),
    )


def _borne_out(claimed: int | None, found: Sequence[int | None]) -> int | None:
    known = [bits for bits in found if bits is not None]
    if claimed is None or not known or len(known) < len(found):
        return None
    return max(claimed, *known)


def _counted_weight(graph: ModelGraph, site: Site, stored: Stored) -> Tensor:
    """The nonzeros of a weight, in an order that suits its uses."""
    if stored.same_layout or all(use.shape.is_linear for use in site.uses):
        return torch.from_numpy(np.ascontiguousarray(stored.values != 0))
    # A convolution whose kernel was laid out anew: offsets are unknown, the model's are a bound.
    return graph.weight(site)


def _masked_uses(site: Site, stored: Stored) -> tuple[Use, ...]:
    """The site's uses with the input masks of the file instead of the model's."""
    return tuple(use if use.shape.is_linear else _masked(use, site, stored) for use in site.uses)


def _masked(use: Use, site: Site, stored: Stored) -> Use:
    sample = _sample(use)
    expected = {other.inputs for other in site.uses if _sample(other) == sample}
    found = {_support(read.factor, sample) for read in stored.reads}
    several = any(_sample(other) != sample for other in site.uses)
    if several:  # which of the uses an unmasked convolution of the file is cannot be told
        expected, found = expected - {None}, found - {None}
    if expected == found:
        return use
    if expected - {None} and found - {None}:
        raise PostconditionError(
            f"the file has another input mask ({_told(found)}) than the model ({_told(expected)})",
            where=f"{site.name}, initialiser {stored.name}",
            remedy="This is an error of the exporter; please report it with the model.",
        )
    # The exporter may know more than the run: a product of two buffers is a constant for it.
    only = found.pop() if len(found) == 1 and not several else None
    return replace(use, inputs=only)


def _sample(use: Use) -> tuple[int, ...]:
    """Shape of one sample's input."""
    return (use.shape.in_channels, *use.shape.input_size)


def _support(factor: Array | None, sample: tuple[int, ...]) -> InputSupport | None:
    """The inputs that a factor leaves; `None` for all of them. Only the shape tells a mask."""
    if factor is None or factor.shape not in (sample, (1, *sample)) or np.all(factor != 0):
        return None
    return InputSupport.of(factor.reshape(sample))


def _told(supports: set[InputSupport | None]) -> str:
    return ", ".join(sorted(str(support or "no mask") for support in supports))
