"""Give a model the shapes of tensors that were saved from a smaller copy of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from passes.inputs import Call
from passes.isolation import evaluating, untouched
from passes.rewrite.head_attention import HeadAttention, replace_layer
from passes.rewrite.layer_numbers import match_channels, match_parameters, matching_inputs


def fit_shapes(model: nn.Module, state: Mapping[str, Tensor], call: Call) -> None:
    """Resize parameters and buffers to those of a state dict, in place; values are not copied.

    Only sizes may differ: tensors of another rank, or that the state does not hold, stay as they
    are, so that loading it tells what is wrong. Tied parameters stay tied.

    Args:
        model: As it was before channels were removed.
        state: The state dict of the smaller one.
        call: Example inputs; run once if anything changed.
    """
    new: dict[int, Tensor] = {}
    changed: list[nn.Module] = []
    for path, part in list(model.named_modules()):
        fits = True
        for table in (part._parameters, part._buffers):
            for name, old in table.items():
                saved = state.get(f"{path}.{name}" if path else name)
                if old is None or saved is None or not _resized(old, saved):
                    continue
                table[name] = new.setdefault(id(old), _empty(old, saved))  # type: ignore[assignment]
                fits = False
        if not fits:
            changed.append(part)
    for part in changed:
        match_parameters(part)
    for path, part in list(model.named_modules()):
        if isinstance(part, nn.MultiheadAttention) and part.out_proj in changed:
            replace_layer(part, HeadAttention.of(part, path), model)
    if changed:
        with untouched(model), evaluating(model), matching_inputs(model) as given:
            call.fresh()(model)
        for layer, channels in given.items():
            match_channels(layer, channels)


def _resized(old: Tensor, saved: Tensor) -> bool:
    return old.shape != saved.shape and old.dim() == saved.dim()


def _empty(old: Tensor, saved: Tensor) -> Tensor:
    value = torch.zeros(saved.shape, dtype=old.dtype, device=old.device)
    if isinstance(old, nn.Parameter):
        return nn.Parameter(value, requires_grad=old.requires_grad)
    return value
