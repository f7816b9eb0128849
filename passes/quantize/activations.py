"""Quantizers of activations: nodes of the graph that round to a grid of 8 bits or fewer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from energy_model.errors import ArgumentError
from passes.quantize.encoding import snap
from passes.storage.modules import storable


class _RoundThrough(torch.autograd.Function):
    """Quantize and dequantize; the gradient passes where nothing was clipped."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, values: Tensor, scale: Tensor, zero: Tensor, low: int, high: int
    ) -> Tensor:
        codes = torch.round(values / scale) + zero
        ctx.save_for_backward((codes >= low) & (codes <= high))
        return (codes.clamp(low, high) - zero) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None, None


@storable
class ActivationQuantizer(nn.Module):
    """Rounds a tensor to `(code - zero_point) * scale`, as QuantizeLinear and DequantizeLinear do.

    Codes are `0 ... 2^bits - 1`, or from `-2^(bits - 1)` if signed; ties go to even. Idempotent.
    Gradients pass straight through where nothing is clipped. A new quantizer passes everything on
    unchanged until `set_range` is called.

    Args:
        bits: Width, 2 to 8.
        signed: Whether codes are signed.
    """

    # The tracer keeps it as one layer, as it does with those of torch.
    traced_as_layer: ClassVar[bool] = True

    scale: Tensor
    zero_point: Tensor
    ready: Tensor

    def __init__(self, bits: int = 8, *, signed: bool = False) -> None:
        super().__init__()
        if bits not in range(2, 9):
            raise ArgumentError(
                f"an activation of {bits!r} bits",
                where="ActivationQuantizer.bits",
                remedy="Widths are 2 to 8.",
            )
        self.bits = bits
        self.signed = signed
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros(()))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    @property
    def low(self) -> int:
        """The smallest code."""
        return -int(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """The largest code."""
        return int(self.low + 2**self.bits - 1)

    def set_range(self, low: float, high: float) -> None:
        """Choose the grid that spans a range of values; zero is always on it.

        A range from zero up, as after a ReLU, has its zero point at the smallest code, which is
        what runtimes need to fuse the ReLU into the layer before it.

        Args:
            low: Smallest value to represent; raised to at most 0.
            high: Largest value; lowered to at least 0. With both zero the scale is 1.

        Raises:
            ArgumentError: A bound is not finite, or they are the wrong way round.
        """
        if not (low <= high and abs(low) < float("inf") and abs(high) < float("inf")):
            raise ArgumentError(f"({low}, {high}) is no range of activations", where="set_range")
        low, high = min(low, 0.0), max(high, 0.0)
        steps = self.high - self.low
        width = (high - low) / steps
        # Subnormal scales overflow when they are divided by.
        scale = snap(torch.tensor(width if width > 1e-30 else 1.0))
        zero = min(max(round(self.low - low / float(scale)), self.low), self.high)
        self.scale.copy_(scale)
        self.zero_point.fill_(float(zero))
        self.ready.fill_(True)

    def forward(self, values: Tensor) -> Tensor:
        """The rounded tensor, same shape and type."""
        if not self.ready:
            return values
        scale, zero = self.scale.to(values.dtype), self.zero_point.to(values.dtype)
        apply: Any = _RoundThrough.apply
        rounded: Tensor = apply(values, scale, zero, self.low, self.high)
        return rounded

    def extra_repr(self) -> str:
        """Width and kind; no tensor is read, so that it works on the meta device."""
        return f"bits={self.bits}, signed={self.signed}"

    def to_config(self) -> dict[str, Any]:
        """Arguments that rebuild this module; its buffers are stored as tensors."""
        return {"bits": self.bits, "signed": self.signed}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ActivationQuantizer:
        """Rebuild from `to_config`."""
        return cls(**config)
