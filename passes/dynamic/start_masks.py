"""Which cells are active before training, and how large their values start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from energy_model.errors import ArgumentError, PreconditionError
from passes.dynamic.grow import at_random
from passes.dynamic.random_keys import key_of
from passes.dynamic.selection import least, require_finite, same_length
from passes.dynamic.start import SparseShape

# The number of the event that draws the start; rewiring events are counted from 1.
START_EVENT = 0


def start_masks(
    counts: Sequence[int], sites: Sequence[SparseShape], seed: int
) -> dict[str, Tensor]:
    """Masks with cells at random positions.

    A mask depends on the seed, the name and the size of its site alone, not on other sites.

    Args:
        counts: Active cells of each site.
        sites: The sparse tensors.
        seed: Of the run.

    Returns:
        Masks of shape `(cells,)`, by name.

    Raises:
        ArgumentError: A count is negative or larger than the site.
    """
    _check_counts(counts, sites)
    masks = {}
    for site, count in zip(sites, counts, strict=True):
        free = torch.ones(site.cells, dtype=torch.bool)
        masks[site.name] = at_random(free, count, key_of(seed, START_EVENT, site.name))
    return masks


def by_magnitude(
    magnitudes: Mapping[str, Tensor], counts: Sequence[int], sites: Sequence[SparseShape]
) -> dict[str, Tensor]:
    """Masks of the cells that are largest in a trained network (Frankle and Carbin, ICLR 2019).

    Args:
        magnitudes: Of the cells, flat, by name of the site.
        counts: Active cells of each site.
        sites: The sparse tensors.

    Returns:
        Masks of shape `(cells,)`, by name, with exactly as many cells as asked, zeros among them if
        need be. Of equal cells those with the highest index stay.

    Raises:
        ArgumentError: A count is negative or larger than the site, or a site has no magnitudes.
        PreconditionError: Magnitudes are of another size.
        TrainingError: They are NaN or infinite.
    """
    _check_counts(counts, sites)
    _check_names(magnitudes, sites, "magnitudes")
    masks = {}
    for site, count in zip(sites, counts, strict=True):
        found = magnitudes[site.name].detach()
        if found.shape != (site.cells,):
            raise _mismatch(site, tuple(found.shape), f"({site.cells},)")
        require_finite(found, site.name, "magnitudes")
        masks[site.name] = ~least(found, site.cells - count)
    return masks


def from_masks(masks: Mapping[str, Tensor], sites: Sequence[SparseShape]) -> dict[str, Tensor]:
    """Masks of another run: the structure of a trained network, with values of one's own.

    Args:
        masks: Boolean, by name of the site; of the weight's shape, or one element for each cell.
        sites: The sparse tensors.

    Returns:
        Copies of shape `(cells,)`, by name.

    Raises:
        ArgumentError: A site has no mask, or a mask no site.
        PreconditionError: A mask is not boolean, has another shape, divides a cell or is empty.
    """
    _check_names(masks, sites, "masks")
    return {site.name: _cells_of(masks[site.name], site) for site in sites}


def _cells_of(mask: Tensor, site: SparseShape) -> Tensor:
    whole = mask.numel() == site.parameters and tuple(mask.shape) in (
        site.shape,
        (site.parameters,),
    )
    if mask.dtype != torch.bool:
        raise _mismatch(site, mask.dtype, torch.bool)
    if not whole and tuple(mask.shape) != (site.cells,):
        raise _mismatch(site, tuple(mask.shape), f"{site.shape} or ({site.cells},)")
    rows = mask.detach().reshape(site.cells, -1)
    if bool((rows != rows[:, :1]).any()) or not bool(rows.any()):
        kind = "no active cell" if not bool(rows.any()) else f"parts of cells of {site.block}"
        raise PreconditionError(
            f"the mask has {kind}",
            where=site.name,
            remedy="Take a mask of the same granularity with at least one active cell.",
        )
    return rows[:, 0].clone()


def _check_counts(counts: Sequence[int], sites: Sequence[SparseShape]) -> None:
    same_length(counts=counts, sites=sites)
    for site, count in zip(sites, counts, strict=True):
        if not 0 <= count <= site.cells:
            raise ArgumentError(
                f"{count} of {site.cells} cells cannot be active",
                where=site.name,
                remedy="Give a number from 0 to all of them.",
            )


def _check_names(given: Mapping[str, Tensor], sites: Sequence[SparseShape], what: str) -> None:
    names = {site.name for site in sites}
    missing, unknown = sorted(names - set(given)), sorted(set(given) - names)
    if missing or unknown:
        raise ArgumentError(
            f"{what} are missing for {missing}" if missing else f"no sparse tensor takes {unknown}",
            where=(missing or unknown)[0],
            remedy=f"They are to be of the same model: give one for each of {sorted(names)}.",
        )


def _mismatch(site: SparseShape, found: object, wanted: object) -> PreconditionError:
    return PreconditionError(
        f"found {found}, not {wanted}",
        where=site.name,
        remedy="Is this of another model, or of another granularity?",
    )


def rescaled(scale: float, density: float) -> float:
    """Scale of initial values that keeps the variance of outputs: `scale / sqrt(density)`.

    Args:
        scale: Standard deviation, or bound of a uniform distribution, for the dense tensor.
        density: Share of the tensor's cells that are active, above 0.

    Raises:
        ArgumentError: The density is not such a share.
    """
    if not 0 < density <= 1:
        raise ArgumentError(
            f"density {density!r} is not allowed",
            where="rescaled.density",
            remedy="Give a share above 0 and up to 1.",
        )
    return scale / math.sqrt(density)


def fan_in_factors(mask: Tensor, site: SparseShape) -> Tensor:
    """Factors for initial values by which every output keeps its variance at its own fan-in.

    Args:
        mask: Active cells, shape `(cells,)`.
        site: Their tensor.

    Returns:
        float32 of shape `(outputs,)`: the root of dense fan-in over active fan-in; 1 for outputs
        that have no active input.
    """
    outputs = site.shape[0]
    active = mask.repeat_interleave(site.block).reshape(outputs, -1).sum(dim=1)
    dense = site.parameters // outputs
    return torch.where(active > 0, dense / active.clamp(min=1), 1.0).sqrt().to(torch.float32)
