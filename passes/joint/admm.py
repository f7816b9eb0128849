"""The alternating directions method of multipliers: weights, quantized duplicates and scaled duals.

Minimise the loss of W so that W = V, W sparse and V quantized within the budget (Yang, Gui, Zhu,
Liu, CVPR 2020, equations of section 3): W takes proximal steps towards V - U, V is the projection
of W + U, and U adds up what is left between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Split:
    """What belongs to one weight.

    Attributes:
        duplicate: V, the quantized duplicate.
        dual: U, the dual divided by rho; zero at first.
    """

    duplicate: Tensor
    dual: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Split:
        """Before the first step: V = W, U = 0."""
        return cls(weight.detach().clone(), torch.zeros_like(weight))

    def proximal(self, weight: Tensor, lr: float, rho: float) -> None:
        """W <- (W + b (V - U)) / (1 + b) with b = lr * rho, in place.

        The exact minimum of rho/2 ||W - V + U||^2 + 1/(2 lr) ||W - W_0||^2.
        """
        b = lr * rho
        weight.add_(self.duplicate - self.dual, alpha=b).div_(1 + b)

    def pull(self, weight: Tensor, rho: float) -> Tensor:
        """The gradient of rho/2 ||W - V + U||^2."""
        return rho * (weight - self.duplicate + self.dual)

    def target(self, weight: Tensor) -> Tensor:
        """W + U: what the duplicate is the projection of."""
        return weight + self.dual

    def update(self, weight: Tensor, duplicate: Tensor) -> float:
        """V <- the new duplicate, U <- U + W - V.

        Returns:
            The dual residual ||V_new - V_old||.
        """
        moved = float((duplicate - self.duplicate).norm())
        self.duplicate.copy_(duplicate)
        self.dual.add_(weight - duplicate)
        return moved

    def rescale(self, factor: float) -> None:
        """Keep the dual when rho grows by a factor: U holds the dual divided by rho."""
        self.dual.div_(factor)

    def residual(self, weight: Tensor) -> float:
        """||W - V||, the primal residual."""
        return float((weight - self.duplicate).norm())
