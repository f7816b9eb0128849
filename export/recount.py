"""Count a file again: nonzeros, bits and energy from its initialisers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from energy_model.cost import Cost, CostTable
from energy_model.energy import Energy
from energy_model.errors import PostconditionError
from energy_model.hardware import Hardware
from energy_model.input_support import InputSupport
from export.initializers import Array, Stored
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

    Input masks count as the file has them, too.

    Args:
        graph: The graph, for the geometry of its sites.
        before: Costs of the same sites counted from the model; kept where the file has no weight.
        stored: Where each weight lies.
        hardware: The accelerator.

    Raises:
        PostconditionError: The file masks other inputs of a convolution than the model does.
    """
    rows = [_row(site, before[site.name], stored.get(site.name), hardware) for site in graph.sites]
    return CostTable(tuple(rows), hardware)


def _row(site: Site, row: Cost, stored: Stored | None, hardware: Hardware) -> Cost:
    if stored is None:
        return row
    masked = replace(site, uses=_masked_uses(site, stored))
    if site.computed:
        # What it computes is not in the model; every weight counts.
        energy = masked.energy(hardware, torch.empty(site.size, device="meta"))
        return replace(row, energy=energy, floor=energy.activations)
    nonzeros = int(np.count_nonzero(stored.values))
    bits = stored.values.dtype.itemsize * 8
    energy = _energy(masked, row, stored, hardware)
    return replace(row, nonzeros=nonzeros, bits=bits, energy=energy, floor=energy.activations)


def _energy(site: Site, row: Cost, stored: Stored, hardware: Hardware) -> Energy:
    linear = all(use.shape.is_linear for use in site.uses)
    if not (linear or stored.same_layout):
        return row.energy  # a convolution whose kernel was laid out anew: offsets are unknown
    values = torch.from_numpy(np.ascontiguousarray(stored.values != 0))
    return site.energy(hardware, values)


def _masked_uses(site: Site, stored: Stored) -> tuple[Use, ...]:
    """The site's uses with the input masks of the file instead of the model's."""
    return tuple(use if use.shape.is_linear else _masked(use, site, stored) for use in site.uses)


def _masked(use: Use, site: Site, stored: Stored) -> Use:
    sample = _sample(use)
    expected = {other.inputs for other in site.uses if _sample(other) == sample}
    found = {_support(factor, sample) for factor in stored.factors}
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
