"""Refuse malformed populations, random draws and numbers before a search computes with them."""

from __future__ import annotations

import torch
from torch import Tensor

from energy_model.errors import ArgumentError


def checked_population(population: Tensor, nodes: int | None = None, *, least: int = 1) -> Tensor:
    """The population, if it is bool `(states, nodes)`.

    Args:
        population: What is given.
        nodes: How many nodes it has; `None` takes any number.
        least: How many states there are at least.

    Raises:
        ArgumentError: It is not, or there are fewer states.
    """
    shape = tuple(population.shape)
    if population.dtype != torch.bool or len(shape) != 2 or nodes not in (None, shape[-1]):
        raise ArgumentError(
            f"is {population.dtype} of shape {shape}, "
            f"expected bool (states, {'nodes' if nodes is None else nodes})",
            where="population",
            remedy="Give one row of booleans for each keep-state; True keeps a node.",
        )
    if shape[0] < least:
        raise ArgumentError(
            f"{shape[0]} states, {least} is the least",
            where="population",
            remedy=f"Take {least} states or more.",
        )
    return population


def checked_numbers(values: Tensor, shape: tuple[int, ...], where: str) -> Tensor:
    """The numbers as float64 on the CPU, if they have the shape.

    Raises:
        ArgumentError: They do not, or are not real.
    """
    if tuple(values.shape) != shape or values.is_complex() or values.dtype == torch.bool:
        raise ArgumentError(
            f"are {values.dtype} of shape {tuple(values.shape)}, expected numbers {shape}",
            where=where,
        )
    return values.detach().cpu().double()


def checked_rate(rate: float, where: str) -> float:
    """The rate, if it is from 0 to 1.

    Raises:
        ArgumentError: It is not.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise ArgumentError(f"{rate!r} is no number from 0 to 1", where=where)
    return float(rate)


def checked_rates(rates: float | Tensor, nodes: int, where: str) -> Tensor:
    """Rates from 0 to 1, one for all nodes `()` or one for each `(nodes,)`, as float64.

    Raises:
        ArgumentError: They are not.
    """
    if not isinstance(rates, Tensor):
        return torch.tensor(checked_rate(rates, where), dtype=torch.float64)
    found = checked_numbers(rates, () if rates.dim() == 0 else (nodes,), where)
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise ArgumentError("are not all numbers from 0 to 1", where=where)
    return found
