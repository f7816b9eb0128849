"""What an optimizer remembers of single weights, forgotten where these begin anew."""

from __future__ import annotations

import torch
from torch import Tensor

from passes.graph import Site


def part_of(value: Tensor, site: Site) -> Tensor:
    """A view of what belongs to a site, of a tensor like its parameter.

    Args:
        value: Tensor of the shape of the site's parameter.
        site: The site.

    Returns:
        The tensor itself where the site is the whole parameter, otherwise shape `(size,)`.
    """
    # Flattened, a value that lies in memory in another order would be copied.
    whole = site.size == value.numel()
    return value if whole else value.reshape(-1)[site.start : site.start + site.size]


def zero_state(
    optimizer: torch.optim.Optimizer, parameter: Tensor, site: Site, where: Tensor
) -> None:
    """Zero momenta and the like of some weights of a site.

    Every tensor of the parameter's shape in the optimizer's state is meant: momentum of SGD, both
    moments of Adam and AdamW, those of RMSprop and Adadelta, of fused and foreach variants as well.

    Args:
        optimizer: Changed in place.
        parameter: That holds the site.
        site: Whose weights.
        where: Boolean, with the elements of the site; the weights that are meant.
    """
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            part = part_of(value, site)
            part.masked_fill_(where.reshape(part.shape), 0)
