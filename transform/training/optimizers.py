"""Optimizers and learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from energy_model.errors import ArgumentError
from transform.training.config import TrainConfig

_STEP_AT = (0.5, 0.75)
_STEP_FACTOR = 0.1
_EXPONENTIAL_END = 0.01
_PLATEAU_FACTOR, _PLATEAU_PATIENCE = 0.5, 2


def parameter_groups(
    model: nn.Module, config: TrainConfig, tensors: Sequence[Tensor] | None = None
) -> list[dict[str, Any]]:
    """What is trained, that without weight decay in a group of its own.

    Args:
        model: Its parameters that require gradients are trained.
        config: How.
        tensors: Trained instead of them.
    """
    trained = [p for p in model.parameters() if p.requires_grad] if tensors is None else [*tensors]
    if not trained:
        raise ArgumentError(
            "every parameter is frozen",
            where="train",
            remedy="Set requires_grad on what is to be trained, or pass train=False.",
        )
    if config.decay_norm_and_bias:
        return [{"params": trained, "weight_decay": config.weight_decay}]
    flat = [p for p in trained if p.dim() <= 1]
    full = [p for p in trained if p.dim() > 1]
    return [
        {"params": full, "weight_decay": config.weight_decay},
        {"params": flat, "weight_decay": 0.0},
    ]


def build_optimizer(
    model: nn.Module, config: TrainConfig, tensors: Sequence[Tensor] | None = None
) -> torch.optim.Optimizer:
    """The optimizer that a configuration asks for; see `parameter_groups`."""
    groups = parameter_groups(model, config, tensors)
    if not isinstance(config.optimizer, str):
        made: torch.optim.Optimizer = config.optimizer(groups)
        if not isinstance(made, torch.optim.Optimizer):
            raise ArgumentError(
                f"the callable returned {type(made).__name__}",
                where="TrainConfig.optimizer",
                remedy="Return a torch.optim.Optimizer over the parameter groups it is given.",
            )
        return made
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
        )
    classes = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adadelta": torch.optim.Adadelta,
    }
    chosen: torch.optim.Optimizer = classes[config.optimizer](groups, lr=config.lr)
    return chosen


@dataclass
class LearningRate:
    """The learning rate over time.

    Attributes:
        config: The training configuration.
        scale: Factor of `"plateau"`.
        best: Best validation metric so far.
        waiting: Evaluations since then.
    """

    config: TrainConfig
    scale: float = 1.0
    best: float = -math.inf
    waiting: int = 0

    def at(self, epoch: float) -> float:
        """Learning rate at a time, in epochs from the start (fractions included)."""
        config = self.config
        warm = config.warmup_epochs
        rate = self._scheduled(epoch)
        return rate * min(1.0, epoch / warm) if warm and epoch < warm else rate

    def _scheduled(self, epoch: float) -> float:
        config, span = self.config, max(self.config.epochs - self.config.warmup_epochs, 1e-12)
        done = min(max((epoch - config.warmup_epochs) / span, 0.0), 1.0)
        if isinstance(config.schedule, Mapping):
            passed = [rate for start, rate in config.schedule.items() if start <= epoch]
            return passed[-1] if passed else config.lr
        if config.schedule == "cosine":
            return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * done)) / 2
        if config.schedule == "step":
            passed_steps = sum(done >= share for share in _STEP_AT)
            return max(config.min_lr, config.lr * float(_STEP_FACTOR**passed_steps))
        if config.schedule == "exponential":
            end = config.min_lr or config.lr * _EXPONENTIAL_END
            return config.lr * float((end / config.lr) ** done) if config.lr else 0.0
        if config.schedule == "plateau":
            return max(config.min_lr, config.lr * self.scale)
        return config.lr

    def observe(self, metric: float) -> None:
        """Note a validation metric, higher is better."""
        if metric > self.best:
            self.best, self.waiting = metric, 0
            return
        self.waiting += 1
        if self.waiting >= _PLATEAU_PATIENCE:
            self.scale, self.waiting = self.scale * _PLATEAU_FACTOR, 0

    def apply(self, optimizer: torch.optim.Optimizer, epoch: float) -> float:
        """Set the learning rate of every group; returns it."""
        rate = self.at(epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"scale": self.scale, "best": self.best, "waiting": self.waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.scale, self.best = float(state["scale"]), float(state["best"])
        self.waiting = int(state["waiting"])
