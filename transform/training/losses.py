"""Losses: the task's own, and distillation from a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from energy_model.errors import ArgumentError
from passes.outputs import first_tensor
from transform.training.config import Distill

Loss = Callable[[Any, Any], Tensor]


def logits_of(outputs: Any) -> Tensor:
    """The tensor that a classification loss works on: the output, or the first of several.

    Raises:
        ArgumentError: There is no tensor.
    """
    found = first_tensor(outputs)
    if found is None:
        raise ArgumentError(
            f"the model returns {type(outputs).__name__}, which the built-in loss cannot read",
            where="loss",
            remedy="Pass loss=, a function of (outputs, targets).",
        )
    return found


def cross_entropy(label_smoothing: float) -> Loss:
    """Cross entropy of logits `(N, classes, ...)` and integer targets `(N, ...)`."""

    def loss(outputs: Any, targets: Any) -> Tensor:
        return F.cross_entropy(logits_of(outputs), targets, label_smoothing=label_smoothing)

    return loss


def distillation(outputs: Any, teacher: Any, config: Distill) -> Tensor:
    """How far the student's logits are from the teacher's.

    `"logit_mse"` is the mean over batch and classes of the squared difference, without temperature
    or softmax (Yang, Zhu, Liu, ICLR 2019). `"kl"` is `T^2 * KL(softmax(t / T) || softmax(s / T))`,
    averaged over the batch.

    Args:
        outputs: Of the student.
        teacher: Of the teacher; no gradient flows into it.
        config: Kind and temperature.
    """
    student, target = logits_of(outputs), logits_of(teacher).detach()
    if config.kind == "logit_mse":
        return F.mse_loss(student, target)
    heat = config.temperature
    log_student = F.log_softmax(student / heat, dim=1)
    log_target = F.log_softmax(target / heat, dim=1)
    divergence = F.kl_div(log_student, log_target, reduction="sum", log_target=True)
    return divergence * heat**2 / student.shape[0]


def combined(task: Tensor, distilled: Tensor | None, config: Distill | None) -> Tensor:
    """`(1 - weight) * task + weight * distillation`."""
    if distilled is None or config is None:
        return task
    return (1 - config.weight) * task + config.weight * distilled


__all__ = ["Loss", "combined", "cross_entropy", "distillation", "logits_of"]
