"""Geometry of one use of one weighted layer: all that the energy model knows of it.

The first spatial dimension is the row axis: strips of full rows pass through the input cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from energy_model.errors import ArgumentError
from energy_model.geometry import (
    Paddings,
    Sizes,
    conv_output,
    conv_transpose_output,
    dimensions,
    spread,
    spread_pairs,
)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One use of one convolution, transposed convolution or linear layer, for one sample.

    Use the constructors `conv`, `conv_transpose` and `linear`, which fill in what follows.

    Attributes:
        in_channels: Input channels of all groups (c); input features of a linear layer.
        out_channels: Output channels of all groups (d); output features of a linear layer.
        kernel: Kernel size per spatial dimension.
        stride: Stride per spatial dimension.
        padding: Zeros (before, after) per spatial dimension.
        dilation: Distance of kernel taps per spatial dimension.
        groups: Number of groups (g); a depthwise convolution has g = c.
        input_size: Input positions per spatial dimension, unpadded.
        output_size: Output positions per spatial dimension.
        transposed: Whether it is a transposed convolution.
        is_linear: Whether it is a linear layer, then with kernel `(1,)` and its positions (tokens)
            as the only spatial dimension.

    Raises:
        ArgumentError: A size is not a positive integer, the groups do not divide the channels, or
            the output size does not follow from the other sizes.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    transposed: bool = False
    is_linear: bool = False

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "groups"):
            _check_integers(name, (getattr(self, name),))
        for name in ("kernel", "stride", "dilation", "input_size", "output_size"):
            _check_integers(name, getattr(self, name))
        _check_integers("padding", (side for pair in self.padding for side in pair), least=0)
        self._check_groups()
        self._check_output()

    def _check_groups(self) -> None:
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ArgumentError(
                    f"{self.groups} groups do not divide {name}={getattr(self, name)}",
                    where=str(self),
                    remedy="Both channel counts must be multiples of the groups.",
                )

    def _check_output(self) -> None:
        formula = conv_transpose_output if self.transposed else conv_output
        geometry = (self.input_size, self.kernel, self.stride, self.padding, self.dilation)
        if len({len(sizes) for sizes in (*geometry, self.output_size)}) != 1:
            raise ArgumentError(
                f"sizes of different numbers of spatial dimensions: {geometry}, {self.output_size}",
                remedy="Build the shape with LayerShape.conv, conv_transpose or linear.",
            )
        for axis, size in enumerate(self.output_size):
            least = formula(*(sizes[axis] for sizes in geometry))  # type: ignore[arg-type]
            # The rows that a transposed convolution may add are fewer than one of its steps.
            spare = max(self.stride[axis], self.dilation[axis]) - 1 if self.transposed else 0
            if not least <= size <= least + spare:
                raise ArgumentError(
                    f"output_size {self.output_size} is not what the window gives: {least} along "
                    f"dimension {axis}" + (f", up to {spare} more" if spare else ""),
                    where=str(self),
                    remedy="Check input size, kernel, stride, padding and dilation.",
                )

    @classmethod
    def conv(
        cls,
        in_channels: int,
        out_channels: int,
        kernel: Sizes,
        input_size: Sizes,
        *,
        stride: Sizes = 1,
        padding: Paddings = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        output_size: Sizes | None = None,
    ) -> LayerShape:
        """A convolution with any number of spatial dimensions.

        Args:
            in_channels: Input channels of all groups.
            out_channels: Output channels of all groups.
            kernel: Kernel size, one or per dimension.
            input_size: Input positions, one or per dimension. Kernel and input size say together
                how many dimensions there are: two single integers are a 1-D convolution.
            stride: Stride, one or per dimension.
            padding: Zeros added, one, per dimension, or (before, after) per dimension.
            dilation: Distance of kernel taps, one or per dimension.
            groups: Number of groups.
            output_size: Output positions; follows from the rest when absent.

        Raises:
            ArgumentError: As the class.
        """
        dims = dimensions(kernel, input_size)
        window = _window(dims, kernel, stride, padding, dilation)
        inputs = spread("input_size", input_size, dims)
        outputs = tuple(map(conv_output, inputs, *window))
        if output_size is not None:
            outputs = spread("output_size", output_size, dims)
        return cls(in_channels, out_channels, *window, groups, inputs, outputs)

    @classmethod
    def conv_transpose(
        cls,
        in_channels: int,
        out_channels: int,
        kernel: Sizes,
        input_size: Sizes,
        *,
        stride: Sizes = 1,
        padding: Paddings = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        output_padding: Sizes = 0,
        output_size: Sizes | None = None,
    ) -> LayerShape:
        """A transposed convolution with any number of spatial dimensions.

        Args:
            in_channels: Input channels of all groups.
            out_channels: Output channels of all groups.
            kernel: Kernel size, one or per dimension.
            input_size: Input positions, one or per dimension (see `conv`).
            stride: Distance of neighbouring inputs in the output.
            padding: Positions cut off at the output's edges, as torch's argument.
            dilation: Distance of kernel taps.
            groups: Number of groups.
            output_padding: Positions added at the far edge of the output.
            output_size: Output positions; overrides `output_padding`.

        Raises:
            ArgumentError: As the class.
        """
        dims = dimensions(kernel, input_size)
        window = _window(dims, kernel, stride, padding, dilation)
        inputs = spread("input_size", input_size, dims)
        added = spread("output_padding", output_padding, dims)
        least = map(conv_transpose_output, inputs, *window)
        outputs = tuple(size + extra for size, extra in zip(least, added, strict=True))
        if output_size is not None:
            outputs = spread("output_size", output_size, dims)
        return cls(in_channels, out_channels, *window, groups, inputs, outputs, transposed=True)

    @classmethod
    def linear(
        cls, in_features: int, out_features: int, positions: int = 1, groups: int = 1
    ) -> LayerShape:
        """A linear layer, applied to each of `positions` tokens of one sample.

        Args:
            in_features: Input features.
            out_features: Output features.
            positions: Tokens per sample; 1 is the fully connected layer of the paper.
            groups: Number of independent blocks of the weight.

        Raises:
            ArgumentError: As the class.
        """
        tokens = (positions,)
        one, none = (1,), ((0, 0),)
        return cls(
            in_features, out_features, one, one, none, one, groups, tokens, tokens, is_linear=True
        )

    @property
    def positions(self) -> int:
        """Output positions (P)."""
        return math.prod(self.output_size)

    @property
    def inputs(self) -> int:
        """Input elements of all channels, without padding."""
        return self.in_channels * math.prod(self.input_size)

    @property
    def weights(self) -> int:
        """Elements of the weight tensor, without bias."""
        return self.in_channels // self.groups * self.out_channels * math.prod(self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-accumulates by the field's convention: those with padding count."""
        steps = self.input_size if self.transposed else self.output_size
        return self.weights * math.prod(steps)

    @property
    def out_per_group(self) -> int:
        """Output channels of one group (d/g)."""
        return self.out_channels // self.groups

    @property
    def is_fully_connected(self) -> bool:
        """Whether the rule of fully connected layers applies: linear, one position."""
        return self.is_linear and self.positions == 1

    def __str__(self) -> str:
        if self.is_linear:
            tokens = "" if self.input_size == (1,) else f" @{self.input_size[0]}"
            text = f"fc {self.in_channels}>{self.out_channels}{tokens}"
        else:
            text = f"{_times((self.in_channels, *self.input_size))}>{self.out_channels}"
            text += _part("k", self.kernel) + _part("s", self.stride, default=1)
            sides = [b if b == a else f"{b}:{a}" for b, a in self.padding]
            text += _part("p", sides, default=0) + _part("d", self.dilation, default=1)
        text += f" g{self.groups}" if self.groups > 1 else ""
        return text + (" transposed" if self.transposed else "")


_Window = tuple[
    tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...], tuple[int, ...]
]  # kernel, stride, padding, dilation


def _window(dims: int, kernel: Sizes, stride: Sizes, padding: Paddings, dilation: Sizes) -> _Window:
    window = (
        spread("kernel", kernel, dims),
        spread("stride", stride, dims),
        spread_pairs(padding, dims),
        spread("dilation", dilation, dims),
    )
    # The output size divides by the stride before the shape itself can be checked.
    _check_integers("stride", window[1])
    return window


def _check_integers(name: str, values: Iterable[object], least: int = 1) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArgumentError(
                f"{name} holds {value!r}, but every size is an integer of at least {least}",
                remedy="Check the layer's sizes and the size of its input.",
            )


def _times(sizes: Iterable[object]) -> str:
    return "x".join(map(str, sizes))


def _part(letter: str, values: Iterable[object], default: int | None = None) -> str:
    distinct = list(dict.fromkeys(values))
    if distinct == [default]:
        return ""
    return f" {letter}{distinct[0] if len(distinct) == 1 else _times(values)}"
