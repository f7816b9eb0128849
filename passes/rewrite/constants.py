"""Which values of a traced graph do not depend on the model's input.

One sample is run in evaluation mode, and beside it what is known of every value without the sample:
NaN stands for "depends on the input". A sum of products loses nothing through an exact zero: an
all-zero row of a weight gives its bias, whatever it reads.

Only the operations that are listed here are trusted; what any other returns is lost as a whole.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from passes.graph import ModelGraph
from passes.inputs import one_sample
from passes.isolation import evaluating, untouched
from passes.rewrite.channelwise import CONVS, TRANSPOSED
from passes.structure import pointwise
from passes.structure.rules import BY_NAME, FUNCTIONS, LAYERS, METHODS
from passes.tracing.symbolic import placeholder_values

# Each passes NaN on to whatever it reaches; `elementwise` need not, so that it has its own rule.
_MOVEMENTS = """
    permute transpose swapaxes swapdims movedim moveaxis t flatten squeeze unsqueeze ravel roll flip
    repeat tile expand expand_as view view_as reshape reshape_as narrow select unbind
    repeat_interleave unflatten chunk split tensor_split stack cat concat concatenate
"""
_REDUCTIONS = """
    mean sum amax amin max min std var prod logsumexp softmax log_softmax softmin cumsum
"""
_CREATIONS = "zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full"
_FUNCTIONS = """
    layer_norm batch_norm interpolate pixel_shuffle glu
    max_pool{n}d lp_pool{n}d adaptive_max_pool{n}d adaptive_avg_pool{n}d
"""
_LAYERS = """
    Softmax LogSoftmax Softmin LayerNorm RMSNorm GLU Flatten Unflatten PixelShuffle Upsample
    UpsamplingNearest2d UpsamplingBilinear2d InstanceNorm{n}d
    MaxPool{n}d LPPool{n}d AdaptiveMaxPool{n}d AdaptiveAvgPool{n}d
    ReflectionPad{n}d ReplicationPad{n}d CircularPad{n}d
"""
_PRODUCTS = "conv{n}d conv_transpose{n}d linear"
_DROPOUTS = """
    dropout dropout_ dropout1d dropout2d dropout3d alpha_dropout alpha_dropout_
    feature_alpha_dropout feature_alpha_dropout_ feature_dropout feature_dropout_
"""
# Numbers that depend on shapes alone.
_SHAPES = ("size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point", "len")
_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "is_cuda")

Function = Callable[..., Any]
Rule = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]


class _Lost:
    """Stands for what depends on the input and cannot hold NaN: indices, truth values, numbers."""


LOST = _Lost()


def constant_inputs(
    graph: ModelGraph, nodes: Collection[str] | None = None
) -> dict[str, dict[str, Tensor]]:
    """What nodes are given, with NaN for every element that depends on the model's input.

    The model is in evaluation mode, at the resolution of its example inputs. A constant other than
    zero that meets a border of zeros counts as dependent, as where it does is up to the resolution.

    Args:
        graph: A traced model; it is not changed.
        nodes: Names of the nodes; all by default.

    Returns:
        By name of the node, and by name of the node that computed it, a tensor of the shape that it
        has for one sample (for the whole batch, if the model needs that), as it is when the node
        reads it. Other things than tensors of real numbers are left out; empty without a graph.
    """
    module = graph.graph_module
    if module is None:
        return {}
    with untouched(module), evaluating(module):
        for call in (one_sample(graph.call), graph.call):
            runner = _Constants(module, nodes)
            torch.manual_seed(0)  # inside a fork of the random state
            try:
                runner.run(*placeholder_values(module, call.fresh()))
            except Exception:
                if call is graph.call:
                    raise
                continue  # a model that needs its whole batch
            break
        return runner.result()


class _Constants(Interpreter):
    """Runs a sample, and beside it what is known of every value without it.

    The sample tells shapes and types where an operation is not trusted, and may not even run on
    what stands for a lost value.
    """

    def __init__(self, module: GraphModule, wanted: Collection[str] | None) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.known: dict[Node, Any] = {}
        self.found: dict[str, dict[str, Tensor]] = {}
        self.held = [*module.parameters(), *module.buffers()]
        self.versions = [tensor._version for tensor in self.held]
        self.stateful = self.hidden = False

    def result(self) -> dict[str, dict[str, Tensor]]:
        """By node; nothing is constant in a model that changes its own tensors."""
        if self.stateful or [tensor._version for tensor in self.held] != self.versions:
            for tensor in _tensors(self.found):
                tensor.fill_(torch.nan)
        return self.found

    def run_node(self, n: Node) -> Any:
        """Run one node of the sample, and note what is known of it."""
        if self.wanted is None or n.name in self.wanted:
            told = ((source.name, self.known[source]) for source in n.all_input_nodes)
            self.found[n.name] = {name: x.clone() for name, x in told if _is_float(x)}
        given = _tensors(self.fetch_args_kwargs_from_env(n))
        versions = [tensor._version for tensor in given]
        real = super().run_node(n)
        changes = [tensor._version for tensor in given] != versions
        self.stateful |= changes and self.hidden
        known = self.known[n] = self._known(n, real, changes)
        # What is lost is a tensor of its own, even if the operation returned a view.
        read = [self.known[node] for node in n.all_input_nodes]
        self.hidden |= _share(real, given) and not _share(known, read)
        for unused in self.user_to_last_uses.get(n, ()):
            self.known.pop(unused, None)
        return real

    def _known(self, n: Node, real: Any, changes: bool) -> Any:
        if n.op in ("placeholder", "output"):
            return _lost(real)
        if n.op == "get_attr":
            return pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), real)
        args, kwargs = map_arg((n.args, n.kwargs), self.known.__getitem__)
        if n.target is operator.getitem and not any(isinstance(x, Tensor | _Lost) for x in args):
            return operator.getitem(args[0], args[1])
        layer = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        told = [x for node in n.all_input_nodes for x in pytree.tree_leaves(self.known[node])]
        rule = None if (unsure := any(x is LOST for x in told)) else _rule(n, layer)
        if changes and rule not in (_elementwise, _times):
            self._forget((args, kwargs))
        if not _tensors(real):
            return _lost(real) if (unsure or _tensors(told)) and not _of_shape(n) else real
        return _lost(real) if rule is None else rule(_function(n, layer), tuple(args), dict(kwargs))

    def _forget(self, values: Any) -> None:
        """Lose the tensors that an operation changes in a way that is not known."""
        for tensor in _tensors(values):
            if _is_float(tensor):
                tensor.fill_(torch.nan)
            else:
                self.stateful = True


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _lost(real: Any) -> Any:
    """The same structure with nothing known of it."""

    def nothing(value: Any) -> Any:
        return torch.full_like(value, torch.nan) if _is_float(value) else LOST

    return pytree.tree_map(lambda value: value if value is None else nothing(value), real)


def _of_shape(n: Node) -> bool:
    """Whether a node returns a number that depends on shapes, and on no values."""
    if n.target is getattr:
        return n.args[1] in _SHAPE_ATTRIBUTES
    return getattr(n.target, "__name__", n.target) in _SHAPES


def _function(n: Node, layer: nn.Module | None) -> Function:
    """What a node calls, as a function of its arguments."""
    target: Any = n.target
    if layer is not None:
        return layer
    if n.op == "call_method":
        return lambda tensor, *args, **kwargs: getattr(tensor, str(target))(*args, **kwargs)
    return target  # type: ignore[no-any-return]


def _clean(value: Any) -> Any:
    """A copy with zeros for what is lost."""
    if not isinstance(value, Tensor):
        return value
    return torch.where(value.isnan(), 0.0, value) if _is_float(value) else value.clone()


def _any(masks: Iterable[Tensor], like: Tensor) -> Tensor:
    """Where any of some masks holds, which broadcast to the shape of a tensor."""
    nowhere = torch.zeros((), dtype=torch.bool, device=like.device)
    return reduce(torch.logical_or, masks, nowhere).expand(like.shape)


def _elementwise(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Every element of the output depends on the elements at its place."""
    return _at_each_place(function, args, kwargs, ())


def _times(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An elementwise product: zero times anything is zero."""
    return _at_each_place(function, args, kwargs, [x == 0 for x in pytree.tree_leaves(args)])


def _at_each_place(
    function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], zeros: Iterable[Any]
) -> Any:
    spec = pytree.tree_structure((args, kwargs))
    copies = [_clean(x) for x in pytree.tree_leaves((args, kwargs))]
    again, by_name = pytree.tree_unflatten(copies, spec)
    value = function(*again, **by_name)
    for before, copy in zip(pytree.tree_leaves((args, kwargs)), copies, strict=True):
        if isinstance(before, Tensor) and copy._version == 0 and _share(value, copy):
            return function(*args, **kwargs)  # the tensor itself, or a view of it
    masks = [x.isnan() for x in _tensors((args, kwargs)) if _is_float(x)]
    if not _is_float(value):
        return LOST if any(bool(mask.any()) for mask in masks) else value
    kept = _any((torch.as_tensor(x, device=value.device) for x in zeros), value)
    value = value.masked_fill(_any(masks, value) & ~kept, torch.nan)
    for before, copy in zip(pytree.tree_leaves((args, kwargs)), copies, strict=True):
        if isinstance(before, Tensor) and copy._version > 0:
            return before.copy_(value)  # in place: whoever else reads the tensor sees it
    return value


def _share(a: Any, b: Any) -> bool:
    """Whether tensors here and there share memory."""
    there = {t.untyped_storage().data_ptr() for t in _tensors(b)}
    return any(t.untyped_storage().data_ptr() in there for t in _tensors(a))


def _unless_training(position: int) -> Rule:
    """Random in training mode; the position is that of the argument that tells."""

    def rule(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = _elementwise(function, args, kwargs)
        told = kwargs.get("training", kwargs.get("train", True))
        training = args[position] if len(args) > position else told
        return value.fill_(torch.nan) if training else value

    return rule


def _native(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Operations that return NaN wherever NaN reaches."""
    lost = any(bool(x.isnan().any()) for x in _tensors((args, kwargs)) if _is_float(x))
    value = function(*args, **kwargs)
    return pytree.tree_map_only(Tensor, lambda t: t if _is_float(t) or not lost else LOST, value)


def _at_border(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As `_native`, for what puts zeros around its input: nothing but zeros stays known."""
    return _native(function, (torch.where(args[0] == 0, args[0], torch.nan), *args[1:]), kwargs)


def _average(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Average pooling: `(input, kernel_size, stride, padding)`, or a layer."""
    given = args[3] if len(args) > 3 else kwargs.get("padding", 0)
    padding = function.padding if isinstance(function, nn.Module) else given
    return (_at_border if _adds(padding, ()) else _native)(function, args, kwargs)


def _pad(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`F.pad`: `(input, pad, mode, value)`."""
    mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
    return (_at_border if mode == "constant" else _native)(function, args, kwargs)


def _adds(padding: Any, kernel: Sequence[int]) -> bool:
    """Whether a padding (a number, numbers, `"valid"` or `"same"`) adds anything."""
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in kernel)
    return any(padding) if isinstance(padding, tuple | list) else bool(padding)


def _norm(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Norms with a scale for every channel: a scale of zero leaves the bias."""
    layer: Any = function
    value = _native(function, args, kwargs)
    if layer.weight is None:
        return value
    off = (layer.weight == 0).view(-1, *[1] * (value.dim() - 2))
    bias = torch.zeros_like(layer.weight) if layer.bias is None else layer.bias
    return torch.where(off, bias.view_as(off), value)


Run = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _product(run: Run, x: Tensor, weight: Tensor, bias: Tensor | None, *, border: bool) -> Tensor:
    """A sum of products: an element is lost if something lost meets a weight that is not zero."""
    missing = x != 0 if border else x.isnan()
    value = run(_clean(x), weight, bias)
    nothing = None if bias is None else torch.zeros_like(bias)
    met = run(missing.to(x.dtype), (weight != 0).to(weight.dtype), nothing)
    return value.masked_fill(met > 0.5, torch.nan)  # a fast convolution is off by a little


def _layer_product(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`nn.Linear` and convolutions."""
    layer: Any = function

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        values = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        result: Tensor = functional_call(layer, values, (x, *args[1:]))
        return result

    return _product(run, args[0], layer.weight, layer.bias, border=zero_padded(layer))


def zero_padded(layer: Any) -> bool:
    """Whether some outputs of a layer see zeros in place of inputs."""
    if isinstance(layer, nn.Linear):
        return False
    if isinstance(layer, TRANSPOSED):
        return True
    return bool(layer.padding_mode == "zeros") and _adds(layer.padding, layer.kernel_size)


def _function_product(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`F.linear`, and convolutions: `(input, weight, bias, stride, padding)`."""
    rest = dict(kwargs)
    x, weight, bias = (
        args[i] if len(args) > i else rest.pop(name, None)
        for i, name in enumerate(("input", "weight", "bias"))
    )
    padding = args[4] if len(args) > 4 else rest.get("padding", 0)
    transposed = "transpose" in function.__name__
    border = transposed or (function is not F.linear and _adds(padding, weight.shape[2:]))

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = function(x, weight, bias, *args[3:], **rest)
        return result

    return _product(run, x, weight, bias, border=border)


def _matmul(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Products of two tensors, either of which may be lost in part."""
    if len(args) != 2 or not all(map(_is_float, args)):
        return _native(function, args, kwargs)
    a, b = args
    met = function(a.isnan().to(a.dtype), (b != 0).to(b.dtype))
    met = met + function((a != 0).to(a.dtype), b.isnan().to(b.dtype))
    return function(_clean(a), _clean(b)).masked_fill(met > 0.5, torch.nan)


def _attention(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`scaled_dot_product_attention`: heads are known or lost as a whole."""
    values = [_clean(x) for x in args]
    value = function(*values, **kwargs)
    others = _tensors((args[3:], kwargs))
    if any(bool(x.isnan().any()) for x in others) or any(args[4:5]) or len(args) > 6 or kwargs:
        return value.fill_(torch.nan)
    heads = [x.isnan().flatten(-2).any(-1)[..., None, None] for x in args[:3]]
    return value.masked_fill(_any(heads, value), torch.nan)


def _found(names: str, *owners: Any) -> list[Any]:
    """What torch has of these names, `{n}` being a number of dimensions."""
    every = " ".join(names.format(n=n) for n in (1, 2, 3)).split()
    return [getattr(o, name) for name in every for o in owners if hasattr(o, name)]


def _pointwise(rules: Mapping[Any, Any]) -> dict[Any, Rule]:
    return {key: _elementwise for key, rule in rules.items() if rule is pointwise.elementwise}


def _layer_rules() -> dict[Any, Rule]:
    rules = _pointwise(LAYERS)
    rules |= dict.fromkeys(_found(_LAYERS, nn), _native)
    rules |= dict.fromkeys(_found("ZeroPad{n}d ConstantPad{n}d", nn), _at_border)
    rules |= dict.fromkeys(_found("AvgPool{n}d", nn), _average)
    rules |= dict.fromkeys([*_found("BatchNorm{n}d", nn), nn.GroupNorm], _norm)
    rules |= dict.fromkeys([*CONVS, *TRANSPOSED, nn.Linear], _layer_product)
    return rules | {nn.PReLU: _elementwise}


def _named_rules() -> dict[Any, Rule]:
    """Rules of what torch offers under one name as function and as method."""
    rules = _pointwise(METHODS)
    rules |= dict.fromkeys((_MOVEMENTS + _REDUCTIONS + _CREATIONS).split(), _native)
    rules |= dict.fromkeys(["mul", "mul_", "multiply"], _times)
    return rules | dict.fromkeys(["matmul", "bmm"], _matmul)


def _function_rules() -> dict[Any, Rule]:
    rules = _pointwise(FUNCTIONS)
    for name, rule in _named_rules().items():
        rules |= dict.fromkeys(_found(name, torch, F), rule)
    rules |= dict.fromkeys(_found(_FUNCTIONS, torch, F), _native)
    rules |= dict.fromkeys(_found("avg_pool{n}d", torch, F), _average)
    rules |= dict.fromkeys(_found(_PRODUCTS, torch, F), _function_product)
    rules |= dict.fromkeys(_found(_DROPOUTS, torch, F), _unless_training(2))
    rules |= dict.fromkeys(_found("rrelu rrelu_", torch, F), _unless_training(3))
    rules |= dict.fromkeys((operator.mul, operator.imul), _times)
    return rules | {
        F.pad: _pad,
        F.scaled_dot_product_attention: _attention,
        operator.matmul: _matmul,
        operator.getitem: _native,
    }


_LAYER_RULES = _layer_rules()
_METHOD_RULES = _named_rules()
_FUNCTION_RULES = _function_rules()


def _rule(n: Node, layer: nn.Module | None) -> Rule | None:
    """What is known of a node's output; `None` if it is not trusted."""
    if layer is not None:
        hooks = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
        return None if hooks else _LAYER_RULES.get(type(layer))
    if n.op == "call_method":
        return _METHOD_RULES.get(str(n.target))
    if n.target is getattr:
        return _native if n.args[1] in ("T", "mT", "data") else None
    target: Any = n.target
    named = (getattr(target, "__module__", ""), getattr(target, "__name__", ""))
    if BY_NAME.get(named) is pointwise.elementwise:
        return _unless_training(3)  # stochastic depth
    return _FUNCTION_RULES.get(target)
