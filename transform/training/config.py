"""How a model is trained while it is compressed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch

from energy_model.config import Config
from energy_model.errors import ArgumentError

OptimizerName = Literal["sgd", "adam", "adamw", "adadelta"]
ScheduleName = Literal["cosine", "step", "exponential", "plateau", "constant"]
DistillKind = Literal["logit_mse", "kl"]
OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Distill(Config):
    """Distillation of the teacher's logits.

    Attributes:
        weight: Share of the loss, from 0 to 1; the task's own loss has the rest.
        kind: `"logit_mse"`: mean squared difference of logits over batch and classes (Yang, Zhu,
            Liu, ICLR 2019). `"kl"`: Kullback-Leibler divergence of softened outputs, times the
            square of the temperature (Hinton et al., 2015).
        temperature: Softening of `"kl"`.
    """

    weight: float = 0.5
    kind: DistillKind = "logit_mse"
    temperature: float = 4.0

    def __post_init__(self) -> None:
        self._require("weight", _number(self.weight, 0, 1), "a number from 0 to 1")
        self._require("kind", self.kind in get_args(DistillKind), str(get_args(DistillKind)))
        self._require("temperature", _number(self.temperature, 1e-6), "a positive number")


@dataclass(frozen=True)
class TrainConfig(Config):
    """Configuration of training; every field changes the run.

    Attributes:
        epochs: Passes over the data; 0 only projects.
        optimizer: A name, or a callable from parameter groups to an optimizer. A learning rate
            that the callable sets itself is overwritten by `lr` and `schedule` at every batch.
        lr: Initial learning rate.
        momentum: Of `"sgd"`.
        nesterov: Nesterov momentum of `"sgd"`.
        weight_decay: L2 (decoupled for `"adamw"`).
        decay_norm_and_bias: Whether weight decay also applies to parameters with one dimension.
        schedule: Of the learning rate: `"cosine"` to `min_lr`; `"step"`: a tenth after one half and
            three quarters of the epochs; `"exponential"` to `min_lr` (or a hundredth);
            `"plateau"`: half after two epochs without a better validation metric; `"constant"`;
            or `{epoch: lr}`.
        min_lr: Lower end of the schedule; not above `lr`.
        warmup_epochs: Linear warm-up from zero, in (fractions of) epochs.
        clip_grad: Largest norm of the gradient; `None` for no clipping.
        label_smoothing: Of the built-in cross entropy.
        distill: Distillation against the teacher; a `Distill`, a weight, or `None`.
        dropout: Probability of every dropout layer; `None` leaves them as they are.
        amp: Mixed precision: `None`, `"bf16"` or `"fp16"`.
        accumulate: Batches per optimizer step.
        batches_per_epoch: Only so many batches an epoch; `None` for all.
        eval_every: Epochs between evaluations; the last epoch is always evaluated.
        save_every: Epochs between checkpoints, where there is an output folder.
        log_every: Batches (not optimizer steps: see `accumulate`) between rows of the history
            within an epoch; 0 for one row an epoch.
        select: `"best"`: of the epochs within budget the one with the best validation metric;
            `"last"`.
        seed: Seed of everything random in training; `None` takes that of `compress`.
    """

    epochs: int = 10
    optimizer: OptimizerName | OptimizerFactory = "sgd"
    lr: float = 1e-2
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = True
    schedule: ScheduleName | Mapping[float, float] = "cosine"
    min_lr: float = 0.0
    warmup_epochs: float = 0.0
    clip_grad: float | None = None
    label_smoothing: float = 0.0
    distill: Distill | float | None = None
    dropout: float | None = None
    amp: Literal["bf16", "fp16"] | None = None
    accumulate: int = 1
    batches_per_epoch: int | None = None
    eval_every: int = 1
    save_every: int = 1
    log_every: int = 0
    select: Literal["best", "last"] = "best"
    seed: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.distill, Mapping):
            object.__setattr__(self, "distill", Distill.from_dict(self.distill))
        elif isinstance(self.distill, int | float) and not isinstance(self.distill, bool):
            object.__setattr__(self, "distill", Distill(float(self.distill)))
        if isinstance(self.schedule, Mapping):
            object.__setattr__(self, "schedule", _table(self.schedule))
        for name, (valid, allowed) in _RULES.items():
            self._require(name, valid(getattr(self, name)), allowed)
        if self.nesterov and not self.momentum:
            raise ArgumentError("nesterov needs a momentum", where="TrainConfig.nesterov")
        if self.min_lr > self.lr:
            raise ArgumentError(
                f"min_lr is {self.min_lr}, above lr, which is {self.lr}",
                where="TrainConfig.min_lr",
                remedy="The schedule falls from lr to min_lr: lower min_lr, or raise lr.",
            )

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object; a callable optimizer cannot be written."""
        if callable(self.optimizer):
            raise ArgumentError(
                "an optimizer given as a callable cannot be written down",
                where="TrainConfig.optimizer",
                remedy="Use a name where the configuration must be saved.",
            )
        data = super().to_dict()
        if isinstance(self.distill, Distill):
            data["distill"] = self.distill.to_dict()
        if isinstance(self.schedule, Mapping):
            data["schedule"] = {str(epoch): lr for epoch, lr in self.schedule.items()}
        return data

    @property
    def distillation(self) -> Distill | None:
        """The distillation, in its full form."""
        return self.distill if isinstance(self.distill, Distill) else None


def _table(schedule: Mapping[Any, Any]) -> dict[float, float]:
    # True and False are numbers to float(), and no learning rates.
    plain = [tuple("" if isinstance(v, bool) else v for v in pair) for pair in schedule.items()]
    try:
        return dict(sorted((float(epoch), float(lr)) for epoch, lr in plain))
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"{dict(schedule)!r} is no table of learning rates",
            where="TrainConfig.schedule",
            remedy="Write {epoch: lr}, both numbers.",
        ) from error


def _number(value: Any, low: float, high: float = math.inf) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value) and low <= value <= high


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _schedule(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(_number(e, 0) and _number(r, 0) for e, r in value.items())
    return value in get_args(ScheduleName)


_Rule = tuple[Callable[[Any], bool], str]
_RULES: dict[str, _Rule] = {
    "epochs": (lambda v: _whole(v, 0), "a whole number from 0"),
    "optimizer": (
        lambda v: callable(v) or v in get_args(OptimizerName),
        f"a callable or one of {get_args(OptimizerName)}",
    ),
    "lr": (lambda v: _number(v, 0), "a number from 0"),
    "momentum": (lambda v: _number(v, 0, 1), "a number from 0 to 1"),
    "nesterov": (lambda v: isinstance(v, bool), "True or False"),
    "weight_decay": (lambda v: _number(v, 0), "a number from 0"),
    "decay_norm_and_bias": (lambda v: isinstance(v, bool), "True or False"),
    "schedule": (_schedule, f"{{epoch: lr}} or one of {get_args(ScheduleName)}"),
    "min_lr": (lambda v: _number(v, 0), "a number from 0"),
    "warmup_epochs": (lambda v: _number(v, 0), "a number from 0"),
    "clip_grad": (lambda v: v is None or _number(v, 1e-12), "None or a positive number"),
    "label_smoothing": (lambda v: _number(v, 0, 1), "a number from 0 to 1"),
    "distill": (
        lambda v: v is None or isinstance(v, Distill),
        "None, a weight from 0 to 1 or a Distill",
    ),
    "dropout": (lambda v: v is None or _number(v, 0, 1), "None or a number from 0 to 1"),
    "amp": (lambda v: v in (None, "bf16", "fp16"), "None, 'bf16' or 'fp16'"),
    "accumulate": (lambda v: _whole(v, 1), "a whole number from 1"),
    "batches_per_epoch": (lambda v: v is None or _whole(v, 1), "None or a whole number from 1"),
    "eval_every": (lambda v: _whole(v, 1), "a whole number from 1"),
    "save_every": (lambda v: _whole(v, 1), "a whole number from 1"),
    "log_every": (lambda v: _whole(v, 0), "a whole number from 0"),
    "select": (lambda v: v in ("best", "last"), "'best' or 'last'"),
    "seed": (lambda v: v is None or _whole(v, 0), "None or a whole number from 0"),
}

assert set(_RULES) == {field.name for field in fields(TrainConfig)}
