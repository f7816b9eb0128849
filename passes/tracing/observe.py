"""Find every use of every weight by running the model once.

The run is watched at the level of ATen, below every front end: functional calls, attention, fused
recurrent layers and modules called twice all end in the same few products. (Watching
`torch.nn.functional` instead would miss what a composite such as multi-head attention calls inside
itself.) A weight is recognised by its storage, so that transposed or sliced views and tied
parameters are found as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from energy_model.shapes import LayerShape


@dataclass(frozen=True, slots=True)
class Product:
    """One observed product of activations and a tensor that may be a weight.

    Attributes:
        shape: Geometry of one repetition.
        count: Repetitions within one inference.
        weight: The weight operand.
        module: Path of the innermost module that was running.
    """

    shape: LayerShape
    count: int
    weight: Tensor
    module: str


@dataclass
class _Pad:
    """The output of the last zero padding, which belongs to the convolution that follows."""

    output: Tensor
    amounts: tuple[tuple[int, int], ...]


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the products of one forward pass."""

    def __init__(self, storages: frozenset[int], layers: frozenset[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages = storages
        self.layers = layers
        self.products: list[Product] = []
        self.stack: list[str] = [""]
        self.pad: _Pad | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        rule = _RULES.get(func._overloadpacket.__name__)
        if rule is not None:
            rule(self, args, output)
        return output

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether the tensor is a parameter or a view of one."""
        return tensor.untyped_storage()._cdata in self.storages

    def may_be_weight(self, tensor: Tensor) -> bool:
        """Whether the tensor is a parameter, or was computed from one by the running layer."""
        return self.is_weight(tensor) or self.stack[-1] in self.layers

    def add(self, shape: LayerShape, weight: Tensor, count: int = 1) -> None:
        """Record one product."""
        self.products.append(Product(shape, count, weight, self.stack[-1]))


def _pad(watcher: _Watcher, args: tuple[Any, ...], output: Tensor) -> None:
    value = args[2] if len(args) > 2 else 0
    pairs = list(zip(args[1][::2], args[1][1::2], strict=True))[::-1]
    spatial = output.dim() - 2
    if value == 0 and len(pairs) <= spatial and min(args[1], default=0) >= 0:
        amounts = [(0, 0)] * (spatial - len(pairs)) + pairs
        watcher.pad = _Pad(output, tuple(amounts))


def _convolution(watcher: _Watcher, args: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, stride, padding, dilation, transposed, _, groups = args[:9]
    pairs = tuple((p, p) for p in padding)
    size = tuple(x.shape[2:])
    pad, watcher.pad = watcher.pad, None
    if pad is not None and pad.output is x and not transposed:
        pairs = tuple((p + a, p + b) for p, (a, b) in zip(padding, pad.amounts, strict=True))
        size = tuple(n - a - b for n, (a, b) in zip(size, pad.amounts, strict=True))
    shape = LayerShape(
        in_channels=x.shape[1],
        out_channels=output.shape[1],
        kernel=tuple(weight.shape[2:]),
        stride=tuple(stride),
        padding=pairs,
        dilation=tuple(dilation),
        groups=groups,
        input_size=size,
        output_size=tuple(output.shape[2:]),
        transposed=transposed,
    )
    watcher.add(shape, weight, count=x.shape[0])


def _product(watcher: _Watcher, left: Tensor, right: Tensor) -> None:
    """`left @ right`, either of which may be the weight."""
    if watcher.is_weight(left) and not watcher.is_weight(right):
        rows, inner = left.shape
        watcher.add(LayerShape.linear(inner, rows, right.shape[1]), left)
    elif watcher.may_be_weight(right):
        inner, columns = right.shape
        watcher.add(LayerShape.linear(inner, columns, left.shape[0]), right)


def _mm(watcher: _Watcher, args: tuple[Any, ...], output: Tensor) -> None:
    _product(watcher, args[-2], args[-1])


def _mv(watcher: _Watcher, args: tuple[Any, ...], output: Tensor) -> None:
    _product(watcher, args[-2], args[-1].unsqueeze(1))


def _bmm(watcher: _Watcher, args: tuple[Any, ...], output: Tensor) -> None:
    left, right = args[-2], args[-1]
    if watcher.is_weight(left) and not watcher.is_weight(right):
        left, right = right.transpose(1, 2), left.transpose(1, 2)
    if not watcher.may_be_weight(right):
        return
    groups, inner, columns = right.shape
    if right.stride(0) == 0 and groups > 1:  # one weight, expanded over the batch
        watcher.add(LayerShape.linear(inner, columns, groups * left.shape[1]), right[0])
    else:
        shape = LayerShape.linear(groups * inner, groups * columns, left.shape[1], groups=groups)
        watcher.add(shape, right)


def _fused_rnn(watcher: _Watcher, args: tuple[Any, ...], output: Any) -> None:
    """`mkldnn_rnn_layer(input, w_ih, w_hh, ...)`, input of shape `(T, N, C)`.

    The input product runs over all T steps at once; the recurrent one is streamed T times.
    """
    x, w_ih, w_hh = args[:3]
    steps, batch = x.shape[:2]
    watcher.add(LayerShape.linear(w_ih.shape[1], w_ih.shape[0], steps), w_ih, count=batch)
    watcher.add(LayerShape.linear(w_hh.shape[1], w_hh.shape[0]), w_hh, count=steps * batch)


_RULES: dict[str, Callable[[_Watcher, tuple[Any, ...], Any], None]] = {
    "constant_pad_nd": _pad,
    "convolution": _convolution,
    "mm": _mm,
    "addmm": _mm,
    "mv": _mv,
    "addmv": _mv,
    "bmm": _bmm,
    "baddbmm": _bmm,
    "mkldnn_rnn_layer": _fused_rnn,
}


@dataclass
class Observation:
    """What one forward pass showed.

    Attributes:
        output: What the model returned.
        products: Every product, in order.
        calls: How often each module was called, by path.
    """

    output: Any
    products: list[Product] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)


@contextmanager
def _module_paths(model: nn.Module, stack: list[str], calls: Counter[str]) -> Any:
    """Keep `stack` at the path of the running module, by hooks that are removed again."""
    handles = []

    def enter(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append(path)
            calls[path] += 1

        return hook

    def leave(*_: Any) -> None:
        stack.pop()

    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def observe(
    model: nn.Module, run: Callable[[nn.Module], Any], parameters: Iterable[Tensor]
) -> Observation:
    """Run the model once and record every product.

    Args:
        model: The model, in evaluation mode.
        run: Calls the model on its example.
        parameters: The tensors that count as weights.
    """
    storages = frozenset(p.untyped_storage()._cdata for p in parameters)
    linear = (path for path, module in model.named_modules() if isinstance(module, nn.Linear))
    watcher = _Watcher(storages, frozenset(linear))
    result = Observation(None, watcher.products)
    # Recurrent layers must decompose into products, also on a GPU.
    with (
        torch.backends.cudnn.flags(enabled=False),
        _module_paths(model, watcher.stack, result.calls),
        watcher,
    ):
        result.output = run(model)
    return result
