"""Run somebody's model and leave no trace: modes, state and random generators are put back."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from energy_model.errors import PreconditionError


@contextmanager
def preserved_random_state(*devices: torch.device) -> Iterator[None]:
    """Restore the global generators of torch, Python and numpy afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[d for d in devices if d.type == "cuda"]):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode without gradients; every module's own flag is restored."""
    flags = [(module, module.training) for module in model.modules()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    devices = {p.device for p in model.parameters()}
    model.eval()
    # The fused attention kernel would hide the products that it is made of.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), preserved_random_state(*devices):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, flag in flags:
            module.training = flag


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back what a model's `forward` writes into its modules: attributes and buffers."""
    kept = [
        (module, dict(module.__dict__), dict(module._buffers))
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, attributes, buffers in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in values:
                if buffer.device.type != "meta" and not torch.equal(buffer, value):
                    buffer.copy_(value)


def copied(model: nn.Module, device: torch.device) -> nn.Module:
    """A deep copy of a model, on a device.

    Raises:
        PreconditionError: The model cannot be copied.
    """
    try:
        return copy.deepcopy(model).to(device)
    except RuntimeError as error:
        raise PreconditionError(
            f"the model cannot be copied: {str(error).splitlines()[0]}",
            where=type(model).__name__,
            remedy="Detach tensors that were stored on modules during training.",
        ) from error
