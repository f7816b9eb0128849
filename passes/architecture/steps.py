"""A traced graph as a list of steps: what each computes, from what, and in which shape."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree

from energy_model.errors import PreconditionError
from passes.graph import ModelGraph
from passes.rewrite.head_attention import HeadAttention
from passes.sample_run import run_sample

WEIGHTED = frozenset({"conv", "depthwise", "grouped", "linear"})
# What a sketch shows as a layer; all else only hands values on.
SHOWN = WEIGHTED | {"attention", "norm", "act", "pool", "cat", "other"}

# Nodes that add a skip connection carry this name, which survives copying and storing.
SKIP_NODE = "added_skip"
# Holds the scales of gated skips.
SKIP_SCALES = "skips"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ACTS = _words("""
    relu relu_ relu6 leaky_relu leaky_relu_ prelu rrelu elu elu_ selu selu_ celu gelu silu mish
    hardswish hardsigmoid hardtanh hardtanh_ sigmoid sigmoid_ logsigmoid tanh tanh_ tanhshrink
    softplus softsign softshrink hardshrink threshold glu clamp clamp_ clip
    """)
_ACT_LAYERS = _words("""
    ReLU ReLU6 LeakyReLU PReLU RReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh
    Sigmoid LogSigmoid Tanh Tanhshrink Softplus Softsign Softshrink Hardshrink Threshold GLU
    """)
_NORMS = _words("batch_norm layer_norm group_norm instance_norm rms_norm")
_POOLS = _words("""
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d lp_pool1d lp_pool2d mean amax amin interpolate
    """)
_PASSES = _words("""
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout flatten view reshape
    permute transpose swapaxes movedim t contiguous clone squeeze unsqueeze unflatten expand
    expand_as chunk split tensor_split unbind narrow select getitem getattr pad roll flip repeat to
    float double type stochastic_depth pixel_shuffle channel_shuffle detach
    """)
_PASS_LAYERS = _words("""
    Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout Flatten
    Unflatten PixelShuffle ChannelShuffle StochasticDepth Permute
    """)
_SUMS = _words("add add_ iadd")
_SCALES = _words("add add_ iadd sub sub_ isub mul mul_ imul div div_ truediv itruediv")


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One node of a graph.

    Attributes:
        index: Its place in the order of execution.
        node: The node.
        label: Its name for people and genotypes: the path of the layer that it calls, if it is the
            only call, otherwise the name of the node.
        kind: One of `SHOWN`; `"add"`, a sum of two computed tensors; `"pass"`, which moves or
            scales elements; `"input"`, `"constant"`, `"number"` (no tensor), `"output"`.
        inputs: Places of the steps that it reads, in order of its arguments, constants too.
        data: Place of the tensor that it works on; -1 for none.
        shape: Of its result, of one sample; of a layer that returns several tensors that of the
            first; `None` for numbers and what else returns several.
        dtype: Of its result; `None` for what is no tensor.
        channel: The dimension of its result that counts channels or features; -1 for none.
        area: Positions of its result, for one sample.
    """

    index: int
    node: Node
    label: str
    kind: str
    inputs: tuple[int, ...]
    data: int
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    channel: int
    area: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """Stands for a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class _Recorder(Interpreter):
    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.found: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        seen = pytree.tree_map_only(Tensor, lambda t: _Seen(tuple(t.shape), t.dtype), value)
        self.found[n] = seen
        return value


def traced_module(graph: ModelGraph) -> GraphModule:
    """The traced graph of a model.

    Raises:
        PreconditionError: The model as a whole could not be traced.
    """
    if graph.graph_module is None:
        why = graph.leaves[0].reason if graph.leaves else "it has no graph"
        raise PreconditionError(
            f"the model cannot be traced as a whole: {why}",
            where=type(graph.module).__name__,
            remedy="A search over architectures rewrites the graph; make the model traceable.",
        )
    return graph.graph_module


def read_steps(graph: ModelGraph) -> tuple[Step, ...]:
    """Run one sample of a graph, in evaluation mode, and describe every node.

    Args:
        graph: The traced model; it is not changed.

    Raises:
        PreconditionError: The model as a whole could not be traced.
    """
    module = traced_module(graph)
    found = _recorded(graph, module)
    nodes = list(module.graph.nodes)
    places = {node: index for index, node in enumerate(nodes)}
    labels = _labels(nodes)
    kinds: dict[Node, str] = {}
    steps: list[Step] = []
    for index, node in enumerate(nodes):
        value = found.get(node)
        kinds[node] = _kind(module, node, value, kinds)
        seen = value if isinstance(value, _Seen) else None
        inputs = tuple(places[source] for source in node.all_input_nodes)
        computed = [p for p in inputs if kinds[nodes[p]] not in ("constant", "number")]
        data = computed[0] if computed else -1
        first = next((x for x in pytree.tree_leaves(value) if isinstance(x, _Seen)), seen)
        shown = first if kinds[node] in SHOWN else seen
        shape = shown.shape if shown is not None else None
        dtype = seen.dtype if seen is not None else None
        channel = _channel(module, node, kinds[node], shape, steps[data] if computed else None)
        area = math.prod(n for dim, n in enumerate(shape or ()) if dim not in (0, channel))
        label, kind = labels[node], kinds[node]
        steps.append(Step(index, node, label, kind, inputs, data, shape, dtype, channel, area))
    return tuple(steps)


def output_shapes(graph: ModelGraph) -> list[object]:
    """Shapes of what a graph returns for one sample; what is no tensor as it is.

    Raises:
        PreconditionError: The model as a whole could not be traced.
    """
    module = traced_module(graph)
    found = _recorded(graph, module)
    returned = found[next(iter(reversed(module.graph.nodes)))]
    leaves = pytree.tree_leaves(returned)
    return [leaf.shape if isinstance(leaf, _Seen) else leaf for leaf in leaves]


def _recorded(graph: ModelGraph, module: GraphModule) -> dict[Node, Any]:
    return run_sample(graph, module, lambda: _Recorder(module)).found


def _channel(
    module: GraphModule, node: Node, kind: str, shape: tuple[int, ...] | None, given: Step | None
) -> int:
    """The dimension that counts channels.

    Layers say it; what has none of its own is as what it works on. Otherwise it is the second of
    images, and the last of all else.
    """
    if not shape:
        return -1
    layer = node.op == "call_module"
    if kind == "linear" or (kind == "attention" and layer) or _over_last(module, node):
        return len(shape) - 1
    if kind in ("conv", "depthwise", "grouped"):
        return min(1, len(shape) - 1)
    follows = kind in ("act", "add", "attention", "norm", "pool", "cat")
    if follows and given is not None and given.shape and len(given.shape) == len(shape):
        return given.channel
    return 1 if len(shape) in (2, 4, 5) else len(shape) - 1


def _over_last(module: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), nn.LayerNorm | nn.RMSNorm)
    return node.target in (F.layer_norm, F.rms_norm)


def _labels(nodes: list[Node]) -> dict[Node, str]:
    calls = [str(node.target) for node in nodes if node.op == "call_module"]
    found: dict[Node, str] = {}
    names = {node.name for node in nodes}
    for node in nodes:
        path = str(node.target)
        # A path that is also another node's name would name two things.
        own = node.op == "call_module" and calls.count(path) == 1
        found[node] = path if own and (path not in names or path == node.name) else node.name
    return found


def _kind(module: GraphModule, node: Node, value: Any, kinds: dict[Node, str]) -> str:
    if node.op in ("placeholder", "output"):
        return {"placeholder": "input"}.get(node.op, node.op)
    leaves = pytree.tree_leaves(value)
    if not any(isinstance(leaf, _Seen) for leaf in leaves):
        return "number"
    if node.op == "get_attr":
        return "constant"
    computed = [s for s in node.all_input_nodes if kinds[s] not in ("constant", "number")]
    if not computed:
        return "constant"
    if node.op == "call_module":
        return _layer_kind(module.get_submodule(str(node.target)))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return _call_kind(node, name, value, len(computed))


def may_be_view(module: GraphModule, node: Node) -> bool:
    """Whether a node may return its input, or a view of it."""
    if node.op == "call_module":
        return _layer_kind(module.get_submodule(str(node.target))) == "pass"
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in _PASSES


def _layer_kind(layer: nn.Module) -> str:
    name = type(layer).__name__
    if isinstance(layer, _ConvNd):
        return conv_kind(layer.groups, layer.in_channels)
    if isinstance(layer, nn.Linear):
        return "linear"
    if isinstance(layer, nn.MultiheadAttention | HeadAttention):
        return "attention"
    if isinstance(layer, _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        return "norm"
    if name in _ACT_LAYERS:
        return "act"
    if "Pool" in name or "Upsampl" in name:
        return "pool"
    return "pass" if name in _PASS_LAYERS else "other"


def conv_kind(groups: int, in_channels: int) -> str:
    """What a convolution with that many groups is called."""
    if groups == 1:
        return "conv"
    return "depthwise" if groups == in_channels else "grouped"


def _call_kind(node: Node, name: str, value: Any, computed: int) -> str:
    if name in _SUMS and computed == 2:
        return "add"
    if name in _SCALES and computed == 1:
        return "pass"
    if name.startswith(("conv1d", "conv2d", "conv3d", "conv_transpose")):
        groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
        return conv_kind(groups, value.shape[1]) if isinstance(groups, int) else "other"
    if name in ("cat", "concat", "concatenate"):
        return "cat"
    if node.target in (F.linear, operator.matmul, torch.matmul) and computed == 1:
        return "linear"
    if node.target is F.scaled_dot_product_attention:
        return "attention"
    kinds = (("act", _ACTS), ("norm", _NORMS), ("pool", _POOLS), ("pass", _PASSES))
    return next((kind for kind, names in kinds if name in names), "other")
