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
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from energy_model.input_support import InputSupport
from energy_model.shapes import LayerShape


@dataclass(frozen=True, slots=True)
class Product:
    """One observed product of activations and a weight.

    Attributes:
        shape: Geometry of one repetition.
        count: Repetitions within one inference.
        weight: The weight operand; when that is a rearranged copy of a parameter, the parameter.
        module: Path of the innermost module that was running.
        inputs: Inputs that a constant mask leaves; `None` is all of them.
        source: Of a weight that is computed from one parameter alone, that parameter.
    """

    shape: LayerShape
    count: int
    weight: Tensor
    module: str
    inputs: InputSupport | None = None
    source: Tensor | None = None


@dataclass
class _Pad:
    """The output of the last zero padding, which belongs to the convolution that follows."""

    output: Tensor
    source: Tensor
    amounts: tuple[tuple[int, int], ...]


@dataclass
class _Derived:
    """A tensor computed from parameters alone.

    Attributes:
        tensor: Kept alive, so that its storage is not given to another tensor.
        origin: The parameter of which it is a rearranged copy; `None` when values changed.
        source: The one parameter that it was computed from; `None` for several.
    """

    tensor: Tensor
    origin: Tensor | None
    source: Tensor | None


@dataclass
class _Masked:
    """The output of a product with a buffer: an input mask of the layers that read it.

    Attributes:
        output: Kept alive, so that its storage is not given to another tensor.
        mask: The buffer, of the shape of one sample.
        version: What in-place operations on the output change.
    """

    output: Tensor
    mask: Tensor
    version: int

    def is_read_as(self, x: Tensor) -> bool:
        """Whether a tensor of the same storage holds the output's elements, in their places."""
        parts = (x.shape, x.stride(), x.storage_offset())
        own = (self.output.shape, self.output.stride(), self.output.storage_offset())
        return parts == own and _version(x) == self.version


# Copies that keep every element.
_COPIES = frozenset({"clone", "_to_copy", "contiguous", "_unsafe_view", "reshape"})


def _is_layer(part: nn.Module) -> bool:
    """Whether it is a layer of torch, or one of ours in the place of such a layer."""
    ours = getattr(part, "traced_as_layer", False) is True
    return ours or type(part).__module__.startswith("torch.nn")


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else int(tensor._version)


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the products of one forward pass."""

    def __init__(self, model: nn.Module, parameters: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parameters = {_storage(p): p for p in parameters}
        self.buffers = frozenset(_storage(b) for b in model.buffers())
        self.layers = {path for path, part in model.named_modules() if _is_layer(part)}
        self.derived: dict[int, _Derived] = {}
        self.products: list[Product] = []
        self.stack: list[str] = [""]
        self.pad: _Pad | None = None
        self.masked: dict[int, _Masked] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        rule = _RULES.get(name)
        if rule is None or self._makes_a_weight(args):
            self.derive(name, args, output)
        else:
            rule(self, args, output)
        return output

    def _makes_a_weight(self, args: tuple[Any, ...]) -> bool:
        """Whether a product is part of computing a weight, and no layer of the network.

        So is what a parametrization does, and what a user's module multiplies of parameters alone
        (a low-rank weight). A layer of torch that is applied to a learned query is a layer.
        """
        running = self.stack[-1]
        if "parametrizations" in running:
            return True
        tensors = [t for t in pytree.tree_leaves(args) if isinstance(t, Tensor)]
        return running not in self.layers and all(self.is_weight(t) for t in tensors)

    def derive(self, name: str, args: tuple[Any, ...], output: Any) -> None:
        """Note outputs that depend on parameters and constants alone."""
        inputs = [t for t in pytree.tree_leaves(args) if isinstance(t, Tensor)]
        if not any(self.is_weight(t) for t in inputs):
            return
        if not all(self.is_weight(t) or t.dim() == 0 or self.is_constant(t) for t in inputs):
            return
        for tensor in pytree.tree_leaves(output):
            if isinstance(tensor, Tensor) and not self.is_weight(tensor):
                origin = None
                if name in _COPIES and len(inputs) == 1 and inputs[0].numel() == tensor.numel():
                    origin = self.origin(inputs[0])
                self.derived[_storage(tensor)] = _Derived(tensor, origin, self.source(inputs))

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether the tensor is a buffer of the model."""
        return _storage(tensor) in self.buffers

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether the tensor is a parameter, or a view of one."""
        return _storage(tensor) in self.parameters

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether the tensor is a parameter, or was computed from parameters alone."""
        return self.is_parameter(tensor) or _storage(tensor) in self.derived

    def origin(self, tensor: Tensor) -> Tensor | None:
        """The parameter that holds all of the tensor's elements; `None` if there is none."""
        key = _storage(tensor)
        if key in self.derived:
            return self.derived[key].origin
        parameter = self.parameters.get(key)
        whole = parameter is not None and parameter.numel() == tensor.numel()
        return parameter if whole else None

    def source(self, tensors: Iterable[Tensor]) -> Tensor | None:
        """The one parameter that some weights were computed from; `None` for several."""
        keys = {_storage(t) for t in tensors if self.is_weight(t)}
        known = [self.derived[k].source if k in self.derived else self.parameters[k] for k in keys]
        return known[0] if known and all(found is known[0] for found in known) else None

    def support(self, x: Tensor) -> InputSupport | None:
        """The inputs that a mask on `x` leaves; `None` when all of them are used."""
        masked = self.masked.get(_storage(x))
        if masked is None or not masked.is_read_as(x):
            return None
        used = (masked.mask.detach() != 0).reshape(x.shape[1:]).cpu().numpy()
        return None if used.all() else InputSupport.of(used)

    def add(
        self, shape: LayerShape, weight: Tensor, count: int = 1, x: Tensor | None = None
    ) -> None:
        """Record one product; `x` is the activation if a mask on it counts."""
        known, source = weight, None
        if not self.is_parameter(weight):
            origin, source = self.origin(weight), self.source([weight])
            known = weight if origin is None else origin
        inputs = None if x is None else self.support(x)
        self.products.append(Product(shape, count, known, self.stack[-1], inputs, source))


def _pad(watcher: _Watcher, args: tuple[Any, ...], output: Tensor) -> None:
    value = args[2] if len(args) > 2 else 0
    pairs = list(zip(args[1][::2], args[1][1::2], strict=True))[::-1]
    spatial = output.dim() - 2
    if value == 0 and len(pairs) <= spatial and min(args[1], default=0) >= 0:
        amounts = [(0, 0)] * (spatial - len(pairs)) + pairs
        watcher.pad = _Pad(output, args[0], tuple(amounts))


def _mul(watcher: _Watcher, args: tuple[Any, ...], output: Tensor) -> None:
    watcher.derive("mul", args, output)
    sample = tuple(output.shape[1:])
    masks = [t for t in args[:2] if isinstance(t, Tensor) and watcher.is_constant(t)]
    if len(masks) == 1 and tuple(masks[0].shape) in (sample, (1, *sample)):
        watcher.masked[_storage(output)] = _Masked(output, masks[0], _version(output))


def _convolution(watcher: _Watcher, args: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, stride, padding, dilation, transposed, _, groups = args[:9]
    pairs = tuple((p, p) for p in padding)
    size = tuple(x.shape[2:])
    source, pad = x, watcher.pad
    if pad is not None and pad.output is x and not transposed:
        pairs = tuple((p + a, p + b) for p, (a, b) in zip(padding, pad.amounts, strict=True))
        size = tuple(n - a - b for n, (a, b) in zip(size, pad.amounts, strict=True))
        source = pad.source
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
    watcher.add(shape, weight, count=x.shape[0], x=source)


def _weight_first(watcher: _Watcher, left: Tensor, right: Tensor) -> bool | None:
    """Whether the left operand is the weight; `None` when neither is.

    Of two parameters, or two tensors computed from parameters, the right one is.
    """
    for known in (watcher.is_parameter, watcher.is_weight):
        if known(right):
            return False
        if known(left):
            return True
    return None


def _product(watcher: _Watcher, left: Tensor, right: Tensor) -> None:
    """`left @ right`, either of which may be the weight."""
    first = _weight_first(watcher, left, right)
    if first is None or not (left.numel() and right.numel()):
        return
    if first:
        watcher.add(LayerShape.linear(left.shape[1], left.shape[0], right.shape[1]), left)
    else:
        watcher.add(LayerShape.linear(right.shape[0], right.shape[1], left.shape[0]), right)


def _mm(watcher: _Watcher, args: tuple[Any, ...], output: Tensor) -> None:
    _product(watcher, args[-2], args[-1])


def _mv(watcher: _Watcher, args: tuple[Any, ...], output: Tensor) -> None:
    if not watcher.is_constant(args[-1]):  # the power iteration of a spectral norm
        _product(watcher, args[-2], args[-1].unsqueeze(1))


def _bmm(watcher: _Watcher, args: tuple[Any, ...], output: Tensor) -> None:
    left, right = args[-2], args[-1]
    first = _weight_first(watcher, left, right)
    if first is None or not (left.numel() and right.numel()):
        return
    if first:
        left, right = right.transpose(1, 2), left.transpose(1, 2)
    groups, inner, columns = right.shape
    if right.stride(0) == 0 and groups > 1:  # one weight, expanded over the batch
        watcher.add(LayerShape.linear(inner, columns, groups * left.shape[1]), right[0])
    else:
        shape = LayerShape.linear(groups * inner, groups * columns, left.shape[1], groups=groups)
        watcher.add(shape, right)


def _trilinear(watcher: _Watcher, args: tuple[Any, ...], output: Tensor) -> None:
    """`nn.Bilinear`, weight `(out, in1, in2)`: a linear layer on the products of its inputs."""
    x, weight = args[0], args[1]
    if watcher.is_weight(weight) and weight.dim() == 3 and x.numel():
        outputs, first, second = weight.shape
        watcher.add(LayerShape.linear(first * second, outputs, x.shape[0]), weight)


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
    "mul": _mul,
    "convolution": _convolution,
    "mm": _mm,
    "addmm": _mm,
    "mv": _mv,
    "addmv": _mv,
    "bmm": _bmm,
    "baddbmm": _bmm,
    "mkldnn_rnn_layer": _fused_rnn,
    "_trilinear": _trilinear,
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
        if isinstance(module, torch.jit.ScriptModule):
            continue  # takes no hooks
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
    watcher = _Watcher(model, parameters)
    result = Observation(None, watcher.products)
    # Recurrent layers must decompose into products, also on a GPU.
    with (
        torch.backends.cudnn.flags(enabled=False),
        _module_paths(model, watcher.stack, result.calls),
        watcher,
    ):
        result.output = run(model)
    return result
