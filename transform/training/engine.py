"""What runs the training: Accelerate, and the modes of the model while it lasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passes.graph import ModelGraph
from transform.training.config import TrainConfig


@contextmanager
def training_mode(graph: ModelGraph, config: TrainConfig) -> Iterator[None]:
    """Training mode and the overridden dropout; both are put back.

    A model that came in training mode keeps the flags of its parts: what its author froze stays so.
    A layer that takes the place of another in the meantime gets that one's flag.
    """
    roots = [graph.module] if graph.graph_module is None else [graph.module, graph.graph_module]
    flags = [{path: part.training for path, part in root.named_modules()} for root in roots]
    drops = [m for m in graph.module.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    rates = [module.p for module in drops]
    if not graph.module.training:
        for root in roots:
            root.train()
    if config.dropout is not None:
        for module in drops:
            module.p = config.dropout
    try:
        yield
    finally:
        for module, rate in zip(drops, rates, strict=True):
            module.p = rate
        for root, known in zip(roots, flags, strict=True):
            for path, part in root.named_modules():
                part.training = _flag(path, known)


def _flag(path: str, known: Mapping[str, bool]) -> bool:
    """That of the layer at a path, or of the nearest one around it."""
    while path not in known:
        path = path.rpartition(".")[0]
    return known[path]


@contextmanager
def trained_alone(model: nn.Module, tensors: Sequence[Tensor] | None) -> Iterator[None]:
    """Let only some tensors of a model receive gradients; `None` leaves all as they are."""
    if tensors is None:
        yield
        return
    everything = [*model.parameters(), *tensors]
    flags = [(tensor, tensor.requires_grad) for tensor in everything]
    for tensor in everything:
        tensor.requires_grad_(False)
    for tensor in tensors:
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for tensor, flag in flags:
            tensor.requires_grad_(flag)
        for tensor in tensors:
            tensor.grad = None


@dataclass(frozen=True)
class Engine:
    """Accelerate, as far as the loop uses it.

    Attributes:
        model: The model to call.
        optimizer: The optimizer to step.
        accelerator: Device placement, mixed precision, several devices.
    """

    model: Any
    optimizer: Any
    accelerator: Any

    def backward(self, loss: Tensor) -> None:
        """Backpropagate."""
        self.accelerator.backward(loss)

    def autocast(self) -> Any:
        """The precision of the forward pass."""
        return self.accelerator.autocast()

    def clip(self, norm: float) -> None:
        """Clip the norm of all gradients together."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.accelerator.clip_grad_norm_(parameters, norm)


class _Called(nn.Module):
    """Calls a model. Mixed precision wraps the forward of this, not that of the model.

    So a method may change the graph of the model while it is trained, and what it runs itself has
    the precision of the weights.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        return self.model(*args, **kwargs)


@contextmanager
def accelerated(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, device: torch.device
) -> Iterator[Engine]:
    """Hand model and optimizer to Accelerate, and leave the model as it is."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    # Accelerate keeps one state per process; a caller's own must live on.
    shared = [kind._shared_state for kind in (AcceleratorState, PartialState, GradientState)]
    callers = [dict(state) for state in shared]
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=config.amp or "no")
    prepared, stepping = accelerator.prepare(_Called(model), optimizer)
    try:
        yield Engine(prepared, stepping, accelerator)
    finally:
        accelerator.free_memory()
        for state, own in zip(shared, callers, strict=True):
            state.clear()
            state.update(own)
