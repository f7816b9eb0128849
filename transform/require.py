"""The first question to an argument: is it a model at all?"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from energy_model.errors import ArgumentError


def require_model(model: Any) -> None:
    """Raise unless `model` is a module with parameters."""
    if not isinstance(model, nn.Module):
        hint = " Call it first." if callable(model) else ""
        raise ArgumentError(
            f"{type(model).__name__} is not a torch.nn.Module",
            where="model",
            remedy=f"Pass the model itself.{hint}",
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError(
            "a scripted module has no Python code that could be traced",
            where="model",
            remedy="Pass the module that it was made from.",
        )
