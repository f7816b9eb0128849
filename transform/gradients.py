"""Mean gradients of the loss, for scores that are made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from energy_model.errors import PreconditionError
from passes.inputs import as_batch
from passes.isolation import evaluating, untouched
from transform.evaluate import moved
from transform.read_apart import read_apart
from transform.training.batch_errors import batch_errors
from transform.training.losses import Loss, cross_entropy


@dataclass(frozen=True, slots=True)
class Gradients:
    """Averages the gradient of the loss over batches; what `Run.gradients` is.

    Attributes:
        data: Labelled batches.
        loss: Function of (outputs, targets); cross entropy by default.
        device: Where the model is.
    """

    data: Iterable[Any]
    loss: Loss | None
    device: torch.device

    def __call__(self, model: nn.Module, batches: int) -> dict[str, Tensor]:
        """Gradients by name of the parameter, in evaluation mode.

        The model is left as it was, frozen parameters included, which get their gradient too.

        Raises:
            PreconditionError: The data is empty or has no targets, or the loss is not finite.
            TrainingError: The model or the loss fails on a batch.
        """
        parameters = dict(model.named_parameters())
        frozen = [p for p in parameters.values() if not p.requires_grad]
        totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
        count = 0
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            with untouched(model), evaluating(model):
                for item in islice(read_apart(self.data), batches):
                    found = self._gradients(model, item, list(parameters.values()))
                    count += 1
                    for total, gradient in zip(totals.values(), found, strict=True):
                        if gradient is not None:
                            total += gradient
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        if not count:
            raise PreconditionError("there are no batches", where="data")
        return {name: total / count for name, total in totals.items()}

    def _gradients(
        self, model: nn.Module, item: Any, parameters: list[nn.Parameter]
    ) -> tuple[Tensor | None, ...]:
        batch = as_batch(model, item)
        if batch.targets is None:
            raise PreconditionError(
                "the batches have no targets, and a gradient needs a loss",
                where="data",
                remedy="Yield (inputs, targets), or choose a method without gradients.",
            )
        loss = self.loss or cross_entropy(0.0)
        with torch.enable_grad(), batch_errors(batch.call.batch_size):
            outputs = batch.call.to(self.device)(model)
            value = loss(outputs, moved(batch.targets, self.device))
            if value.numel() != 1 or not value.requires_grad:
                raise PreconditionError(
                    "the loss is no single tensor with a gradient",
                    where="loss",
                    remedy="Return a scalar tensor computed from the outputs.",
                )
            if not bool(torch.isfinite(value)):
                raise PreconditionError(f"the loss is {value.item()}", where="data")
            return torch.autograd.grad(value, parameters, allow_unused=True)
