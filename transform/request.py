"""A request to compress: everything that a user said, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from energy_model.budget import Budget
from energy_model.hardware import Hardware
from passes.graph import Site
from passes.inputs import Call
from passes.reconstruct.config import Reconstruction
from passes.selectors import Selector
from transform.choice import Choice
from transform.evaluate import Metric
from transform.fingerprint import state_digest
from transform.gradients import Gradients
from transform.result import Compressed
from transform.training.fit import Training, run_identity
from transform.unlabelled import Unlabelled


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request.

    Attributes:
        model: The caller's model; only copied.
        budget: What was asked.
        call: Example arguments, on the device of the run.
        choice: The method.
        hardware: The accelerator of the energy model.
        device: Where to work.
        seed: Seed of all randomness.
        valid: Labelled batches, or `None`.
        metric: The user's metric, or `None`.
        training: How to train; `None` compresses in one shot.
        layers: Rules for single layers; see `passes.selectors`.
        gradients: Mean gradients of the loss, or `None` without labelled data.
        keep_shapes: Leave dead channels in place.
        batches: Unlabelled batches, or `None` without data.
        reconstruct: How to fit layers to the original's outputs; `None` does not.
        origin: The result that `model` comes from: its original is what budgets are relative to.
    """

    model: nn.Module
    budget: Budget
    call: Call
    choice: Choice
    hardware: Hardware
    device: torch.device
    seed: int
    valid: Iterable[Any] | None
    metric: Metric | None
    training: Training | None
    layers: Mapping[Selector, Any] | None = None
    gradients: Gradients | None = None
    keep_shapes: bool = False
    batches: Unlabelled | None = None
    reconstruct: Reconstruction | None = None
    origin: Compressed | None = None

    def nonzeros(self, site: Site) -> int:
        """Nonzero weights of a layer in the caller's own model."""
        path, attribute = site.owners[0]
        parameter = getattr(self.model.get_submodule(path), attribute).detach().reshape(-1)
        return int(torch.count_nonzero(parameter[site.start : site.start + site.size]))

    @property
    def identity(self) -> str:
        """A digest of everything that makes two runs the same run."""
        training = self.training.identity if self.training else None
        config = self.choice.config.to_dict()
        rules = [(getattr(k, "__name__", k), v) for k, v in (self.layers or {}).items()]
        parts = (str(self.budget), config, self.hardware.to_dict(), self.seed, rules)
        fitted = self.reconstruct.to_dict() if self.reconstruct else None
        return run_identity(state_digest(self.model), *parts, training, fitted)
