"""A constant that differs between training and evaluation."""

from __future__ import annotations

from typing import Any

from torch import nn

from passes.storage.modules import storable


@storable
class Mode(nn.Module):
    """Yields one constant in training mode and another in evaluation mode.

    `torch.fx` bakes `self.training` into the graph: a functional dropout traced in training mode
    would stay on for ever. The traced constant is replaced by a call of this module, which follows
    its own training flag as every module does.

    Args:
        train: The constant in training mode.
        evaluation: The constant in evaluation mode.
    """

    def __init__(self, train: Any, evaluation: Any) -> None:
        super().__init__()
        self.train_value = train
        self.eval_value = evaluation

    def forward(self) -> Any:
        """Return the constant of the current mode."""
        return self.train_value if self.training else self.eval_value

    def extra_repr(self) -> str:
        """Both constants."""
        return f"train={self.train_value!r}, eval={self.eval_value!r}"

    def to_config(self) -> dict[str, Any]:
        """Arguments that rebuild this module."""
        return {"train": self.train_value, "evaluation": self.eval_value}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Mode:
        """Rebuild from `to_config`."""
        return cls(**config)
