"""An optimizer's state for parameters that lose some of their indices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from energy_model.errors import PreconditionError
from passes.rewrite.tensor_slice import TensorSlice

States = dict[int, Any]


def sliced_states(optimizer: torch.optim.Optimizer, slices: Iterable[TensorSlice]) -> States:
    """The state of every parameter as it will be; the optimizer is not changed.

    What has the parameter's shape is sliced as the parameter is; single numbers stay.

    Args:
        optimizer: Any optimizer, or one that wraps another as Accelerate's does.
        slices: What is left of the parameters; those that it does not train have no state.

    Returns:
        State by `id` of the present parameter.

    Raises:
        PreconditionError: The state has tensors of another shape, or the optimizer holds the
            parameters in more places than its groups.
    """
    slices = tuple(slices)
    _check_holds_no_more(optimizer, {id(part.tensor): part.name for part in slices})
    return {
        id(part.tensor): _sliced(part, optimizer.state[part.tensor])
        for part in slices
        if part.tensor in optimizer.state
    }


def _sliced(part: TensorSlice, state: Any) -> Any:
    def slice_one(key: Any, value: Tensor) -> Tensor:
        if value.shape == part.tensor.shape:
            return part.of(value)
        if value.numel() == 1:
            return value
        raise PreconditionError(
            f"the optimizer's state{pytree.keystr(key)} has the shape {tuple(value.shape)}, the "
            f"parameter {tuple(part.tensor.shape)}",
            where=part.name,
            remedy="Make a new optimizer after the removal, or use one that keeps a value for "
            "every weight, such as SGD or Adam.",
        )

    return pytree.tree_map_with_path(
        lambda key, leaf: slice_one(key, leaf) if isinstance(leaf, Tensor) else leaf, state
    )


def _check_holds_no_more(optimizer: Any, names: Mapping[int, str]) -> None:
    """Refuse optimizers with a list of parameters of their own, as LBFGS has."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    for attribute, value in vars(optimizer).items():
        if attribute in ("param_groups", "state"):
            continue
        held = next((names[id(x)] for x in pytree.tree_leaves(value) if id(x) in names), None)
        if held is not None:
            raise PreconditionError(
                f"{type(optimizer).__name__} holds the parameter in {attribute!r}, too",
                where=held,
                remedy="Make a new optimizer after the removal.",
            )


def swap_parameters(
    optimizer: torch.optim.Optimizer, new: Mapping[int, Tensor], states: States
) -> None:
    """Let an optimizer train new parameters in the place of old ones.

    Args:
        optimizer: Its groups keep their order, learning rates and all else.
        new: New parameters by `id` of the old ones.
        states: Their state, as `sliced_states` returned it.
    """
    for group in optimizer.param_groups:
        for place, old in enumerate(group["params"]):
            if id(old) in new:
                group["params"][place] = new[id(old)]
    held = dict(optimizer.state)
    optimizer.state.clear()  # and filled again in the same order
    for old, state in held.items():
        moved = id(old) in states
        optimizer.state[new[id(old)] if moved else old] = states[id(old)] if moved else state
