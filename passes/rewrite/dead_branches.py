"""Remove branches that add a constant: the addition, and all that was computed for it.

Where all channels inside a branch are dead, what it adds is the same for every input. Zeros are not
added at all; another constant goes into the bias of the layer that it is added to, or is kept as
one number for each channel.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from passes.graph import Decision, LayerRule, ModelGraph, Site
from passes.rewrite.channelwise import CONVS, TRANSPOSED
from passes.rewrite.constants import constant_inputs
from passes.rewrite.input_masks import update_supports
from passes.sample_run import run_sample

Place = tuple[str, str]

# Kernels round differently at the end of a row of memory: so many units for "the same number".
ROUNDING = 8
_CONTAINER = "branch_constants"
_ADDITIONS = (torch.add, operator.add, operator.iadd)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# How much smaller than the weights of a branch its constant is to be.
_SMALLER = 2


class Holders:
    """Who holds and calls what in a model and its graph."""

    def __init__(self, graph: ModelGraph, module: GraphModule) -> None:
        self.models = (module, graph.module)
        self.nodes = {node.name: node for node in module.graph.nodes}
        called = [self.layer(n) for n in self.nodes.values() if n.op == "call_module"]
        self.calls = Counter(id(part) for layer in called for part in layer.modules())
        parts = {id(part): part for model in self.models for part in model.modules()}
        self.held = Counter(id(t) for part in parts.values() for t in part._parameters.values())
        reads = (str(n.target).rpartition(".") for n in self.nodes.values() if n.op == "get_attr")
        self.held.update(id(self.tensor((path, name))) for path, _, name in reads)

    def layer(self, node: Node) -> Any:
        """The layer that a node calls; `None` if it calls none."""
        called = node.op == "call_module"
        return self.models[0].get_submodule(str(node.target)) if called else None

    def part(self, path: str) -> nn.Module | None:
        """The module at a path; a graph lacks those that hold no tensors of their own."""
        for model in self.models:
            try:
                return model.get_submodule(path)
            except AttributeError:
                continue
        return None

    def tensor(self, place: Place) -> Any:
        """What a module holds."""
        return getattr(self.part(place[0]), place[1])

    def why_no_bias(self, node: Node) -> str:
        """Why nothing can be added to the bias of the layer at a node; empty if it can."""
        layer = self.layer(node)
        if self.calls[id(layer)] > 1:
            return f"{node.target} is called more than once"
        if layer.bias is not None and self.held[id(layer.bias)] > 1:
            return f"{node.target} shares its bias"
        return ""


def add_to_bias(layer: Any, values: Tensor) -> None:
    """Add to a layer's bias, or give it one.

    Args:
        layer: A layer with weight and bias.
        values: One number for each output, `(n,)` float64; they are rounded once.
    """
    weight, bias = layer.weight, layer.bias
    if bias is None:
        layer.bias = nn.Parameter(values.to(weight), requires_grad=weight.requires_grad)
        return
    with torch.no_grad():
        bias.copy_(bias.double() + values.to(bias.device))


@dataclass(frozen=True, slots=True, eq=False)
class _Branch:
    """A constant that is added to something.

    Attributes:
        node: The addition.
        constant: The operand that is the same for every input.
        other: The other operand.
        value: The constant, of size 1 along every dimension but one at most.
        dying: What is computed for the constant alone.
    """

    node: Node
    constant: Node
    other: Node
    value: Tensor
    dying: frozenset[Node]

    @property
    def channels(self) -> int | None:
        """The dimension along which the constant changes."""
        return next((d for d, size in enumerate(self.value.shape) if size > 1), None)


def remove_dead_branches(graph: ModelGraph, *, keep: Collection[str] = ()) -> list[Decision]:
    """Remove additions of constants, in place.

    A branch goes only if weights go with it. The function stays the same in evaluation mode; in
    training mode it need not, as a norm over constants there is one over what the batch makes of
    them. The graph is the model from then on: the module's own forward still calls the branch.

    Args:
        graph: A finished graph.
        keep: Names of sites that lose nothing, besides those of which the rules keep anything.

    Returns:
        One decision for each branch.
    """
    module = graph.graph_module
    if module is None:
        return []
    decisions: list[Decision] = []
    while True:
        branch = _find(graph, module, keep)
        if branch is None:
            return decisions
        decisions.append(_remove(graph, module, branch))


def _find(graph: ModelGraph, module: GraphModule, keep: Collection[str]) -> _Branch | None:
    additions = [node for node in module.graph.nodes if _is_addition(node)]
    given = constant_inputs(graph, {node.name for node in additions}) if additions else {}
    memory: _Memory | None = None
    for node in additions:
        for constant, other in (node.args, node.args[::-1]):
            branch = _branch(node, constant, other, given[node.name])
            lost = [] if branch is None else _lost_sites(graph, module, branch.dying)
            size = sum(site.size for site in lost)
            if branch is None or size < _SMALLER * branch.value.numel():
                continue
            memory = memory or _Memory.of(graph, module)
            if not any(_is_kept(graph, s, keep) for s in lost) and memory.allows(branch):
                return branch
    return None


def _is_addition(node: Node) -> bool:
    called = node.op == "call_function" and node.target in _ADDITIONS
    method = node.op == "call_method" and node.target in ("add", "add_")
    plain = len(node.args) == 2 and not node.kwargs
    return (called or method) and plain and len(node.all_input_nodes) == 2


def _branch(node: Node, constant: Any, other: Any, given: dict[str, Tensor]) -> _Branch | None:
    """The addition of a constant; `None` if it adds none, or changes shape or type."""
    value, changed = given.get(constant.name), given.get(other.name)
    if value is None or changed is None or value.isnan().any():
        return None
    total = torch.add(value.to("meta"), changed.to("meta"))
    if total.shape != changed.shape or total.dtype != changed.dtype:
        return None
    for dim in range(value.dim()):
        first = value.narrow(dim, 0, 1)
        near = (value - first).abs() <= ROUNDING * torch.finfo(value.dtype).eps * first.abs()
        value = first if bool(near.all()) else value
    if sum(size > 1 for size in value.shape) > 1:
        return None
    value = value.reshape([1] * (changed.dim() - value.dim()) + list(value.shape))
    return _Branch(node, constant, other, value, _dying(node, constant))


def _dying(node: Node, constant: Node) -> frozenset[Node]:
    """What is computed for the constant operand of a node, and for nothing else."""
    if set(constant.users) != {node}:
        return frozenset()
    found = {constant}
    todo = list(constant.all_input_nodes)
    while todo:
        source = todo.pop()
        if source.op != "placeholder" and set(source.users) <= found:
            found.add(source)
            todo += source.all_input_nodes
    return frozenset(found)


def _lost_sites(graph: ModelGraph, module: GraphModule, dying: frozenset[Node]) -> list[Site]:
    """The weights that only nodes that die use."""
    alive = [node for node in module.graph.nodes if node not in dying]
    used = {place for node in alive for place in _places(module, node)}
    lost = {place for node in dying for place in _places(module, node)} - used
    held = {id(_held(module, place)) for place in used}
    lost = {place for place in lost if id(_held(module, place)) not in held}
    return [site for site in graph.sites if set(site.owners) & lost and not site.computed]


def _places(module: GraphModule, node: Node) -> list[Place]:
    """The parameters that a node reads, by itself or through its layer."""
    path, _, name = str(node.target).rpartition(".")
    if node.op == "get_attr":
        return [(path, name)]
    if node.op != "call_module":
        return []
    layer = module.get_submodule(str(node.target))
    names = (f"{node.target}.{name}".rpartition(".") for name, _ in layer.named_parameters())
    return [(path, name) for path, _, name in names]


def _held(module: GraphModule, place: Place) -> Any:
    return getattr(module.get_submodule(place[0]), place[1])


def _is_kept(graph: ModelGraph, site: Site, keep: Collection[str]) -> bool:
    return site.name in keep or graph.rules.get(site.name, LayerRule()).min_density > 0


class _Memory(Interpreter):
    """Notes which nodes share memory, and which change what others hold."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)  # memory must not be used again
        self.held: dict[Node, set[int]] = {}
        self.changed: dict[Node, set[int]] = {}

    @classmethod
    def of(cls, graph: ModelGraph, module: GraphModule) -> _Memory:
        """Run one sample, or the whole batch if the model needs it, in evaluation mode."""
        found = run_sample(graph, module, lambda: cls(module))
        found.env.clear()
        return found

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        given = _tensors(self.fetch_args_kwargs_from_env(n))
        versions = [tensor._version for tensor in given]
        value = super().run_node(n)
        self.held[n] = {_storage(tensor) for tensor in _tensors(value)}
        self.changed[n] = {
            _storage(tensor)
            for tensor, version in zip(given, versions, strict=True)
            if tensor._version != version
        }
        return value

    def allows(self, branch: _Branch) -> bool:
        """Whether nothing is changed in place by what goes, or would be by what then follows."""
        dying, node = branch.dying, branch.node
        by_dying = {memory for n in dying for memory in self.changed[n]}
        if any(self.held[n] & by_dying for n in self.held if n not in dying | {node}):
            return False
        changed = {
            memory for n, found in self.changed.items() if n not in dying for memory in found
        }
        if not changed & self.held[node]:
            return True
        # What follows changes the result, which now is the operand: nothing else may read that.
        order = list(self.held)
        before = order[: order.index(node)]
        aliases = {n for n in before if self.held[n] & self.held[branch.other]} - dying
        readers = {user for n in aliases for user in n.users} - dying - aliases
        return readers == {node} and not any(n.op in ("placeholder", "get_attr") for n in aliases)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _remove(graph: ModelGraph, module: GraphModule, branch: _Branch) -> Decision:
    lost = _lost_sites(graph, module, branch.dying)
    node, result = branch.node, branch.other
    why, left = "it adds zeros", 0
    if branch.value.any():
        holders = Holders(graph, module)
        size = _absorbing(holders, branch)
        left = branch.value.numel()
        why = f"it adds the same to every input, {left} numbers"
        if size is None:
            result = _kept(module, branch)
        else:
            add_to_bias(holders.layer(branch.other), branch.value.double().flatten().expand(size))
            why, left = f"what it adds goes into the bias of {branch.other.target}", 0
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)
    for dead in [n for n in reversed(module.graph.nodes) if n in branch.dying]:
        module.graph.erase_node(dead)
    for dead in branch.dying:
        _delete(module, dead)
    module.graph.lint()
    module.recompile()
    graph.rewritten = True
    graph.sites = tuple(site for site in graph.sites if site not in lost)
    update_supports(graph)
    total = sum(site.size for site in lost)
    return Decision(
        lost[0].name, "dead branch removed", why, f"{total:,} weights", f"{left} numbers"
    )


def _absorbing(holders: Holders, branch: _Branch) -> int | None:
    """How many biases has the layer that computes the other operand, if the constant fits them."""
    layer = holders.layer(branch.other)
    rank = branch.value.dim()
    if type(layer) in (*CONVS, *TRANSPOSED):
        dim, size = rank - 1 - len(layer.kernel_size), layer.out_channels
    elif type(layer) is nn.Linear:
        dim, size = rank - 1, layer.out_features
    elif type(layer) in _NORMS and layer.bias is not None:
        dim, size = 1, layer.num_features
    else:
        return None
    alone = set(branch.other.users) - branch.dying == {branch.node}
    fits = alone and branch.channels in (None, dim) and not holders.why_no_bias(branch.other)
    return int(size) if fits else None


def _kept(module: GraphModule, branch: _Branch) -> Node:
    """Put the constant into a buffer, and add that."""
    if not hasattr(module, _CONTAINER):
        module.add_submodule(_CONTAINER, nn.Module())
    holder = module.get_submodule(_CONTAINER)
    name = f"of_{branch.node.name}"
    holder.register_buffer(name, branch.value.detach().clone())
    with module.graph.inserting_before(branch.node):
        constant = module.graph.get_attr(f"{_CONTAINER}.{name}")
        return module.graph.call_function(torch.add, (branch.other, constant))


def _delete(module: GraphModule, node: Node) -> None:
    """Delete what a node that is gone has called or read, unless something else needs it."""
    if node.op not in ("call_module", "get_attr"):
        return
    called = {str(n.target) for n in module.graph.nodes if n.op == "call_module"}
    used = called | {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    owner: nn.Module = module
    path = ""
    for name in str(node.target).split("."):
        path = f"{path}.{name}" if path else name
        if not any(f"{target}.".startswith(f"{path}.") for target in used):
            if hasattr(owner, name):
                delattr(owner, name)
            return
        if path in called:  # a layer that is called needs all that it holds
            return
        owner = getattr(owner, name)
