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
from energy_model.hardware import Hardware
from export.initializers import Stored
from passes.graph import ModelGraph, Site


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

    Args:
        graph: The graph, for the geometry of its sites.
        before: Costs of the same sites counted from the model; kept where the file has no weight.
        stored: Where each weight lies.
        hardware: The accelerator.
    """
    rows = [_row(site, before[site.name], stored.get(site.name), hardware) for site in graph.sites]
    return CostTable(tuple(rows), hardware)


def _row(site: Site, row: Cost, stored: Stored | None, hardware: Hardware) -> Cost:
    if stored is None:
        return row
    if site.computed:
        return row
    nonzeros = int(np.count_nonzero(stored.values))
    bits = stored.values.dtype.itemsize * 8
    return replace(row, nonzeros=nonzeros, bits=bits, energy=_energy(site, row, stored, hardware))


def _energy(site: Site, row: Cost, stored: Stored, hardware: Hardware) -> Energy:
    linear = all(use.shape.is_linear for use in site.uses)
    if not (linear or stored.same_layout):
        return row.energy  # a convolution whose kernel was laid out anew: offsets are unknown
    values = torch.from_numpy(np.ascontiguousarray(stored.values != 0))
    return site.energy(hardware, values)
