"""Remove channels from a model: every layer, buffer and optimizer state really becomes smaller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize

from energy_model.errors import PostconditionError, PreconditionError
from passes.graph import Decision, ModelGraph, Site
from passes.inputs import Call, one_sample
from passes.isolation import evaluating, untouched
from passes.quantize.eligible import rows_of
from passes.quantize.encoding import Encoding
from passes.rewrite.head_attention import HeadAttention, replace_layer
from passes.rewrite.layer_numbers import match_channels, match_parameters, matching_inputs
from passes.rewrite.shrink_optimizer import sliced_states, swap_parameters
from passes.rewrite.tensor_slice import TensorSlice
from passes.structure.groups import ChannelGroup, ChannelGroups
from passes.structure.state import Cut, State, as_indices, checked_state, cuts
from passes.tracing.symbolic import placeholder_values
from passes.tracing.trace import equal_outputs, observed_sites

# What tracing decides about a model with two forwards that cannot be one graph.
_ONE_MODE = "traced in evaluation mode only"


def shrink(
    graph: ModelGraph,
    groups: ChannelGroups,
    state: State,
    optimizer: torch.optim.Optimizer | None = None,
    why: str = "not kept by the state",
) -> list[Decision]:
    """Remove the units that a state drops, in place.

    The model then computes what `insert_gates` makes of it. Parameters become new ones, tied ones
    stay tied; layers tell their new widths, attention layers become `HeadAttention`, and the sites
    describe the smaller layers under their old names; `graph.kept` tells what is left of each
    tensor. All is checked before anything is changed.

    Args:
        graph: The traced model: `module` and `graph_module` both shrink. Where the forward of the
            module itself is written for the old width, the graph is the model from now on.
        groups: Its channel groups; found anew, they are those of the smaller model.
        state: Which units stay.
        optimizer: Trains the new parameters afterwards, and goes on where it was.
        why: The reason that the decisions give.

    Returns:
        One decision for each group that lost units, and one if the graph became the model.

    Raises:
        ArgumentError: The state does not fit the groups.
        PreconditionError: A layer with hooks or parametrizations, an optimizer whose state cannot
            be sliced, scales in blocks, or groups of another model.
        UnsupportedLayer: Heads are dropped of an attention layer that cannot lose any.
        PostconditionError: The smaller model does not run.
    """
    state = checked_state(groups, state)
    losing = [group for group in groups.free if not state[group.name].all()]
    if not losing or graph.graph_module is None:
        return []
    models = graph.module, graph.graph_module
    planned = cuts(groups, state)
    layers = _layers(models, planned)
    slices = _slices(models, planned)
    attention = _narrow_attention(layers)
    states = {} if optimizer is None else sliced_states(optimizer, slices.values())

    encodings = _narrow_encodings(graph, slices)

    new = {key: part.cut() for key, part in slices.items()}
    for old, narrow in attention:
        replace_layer(old, narrow, *models)
    for part in _replace_tensors(models, new):
        match_parameters(part)
    if optimizer is not None:
        swap_parameters(optimizer, new, states)
    _record(graph, planned)
    graph.encodings |= encodings
    found = [_removed(group, int(state[group.name].sum()), why) for group in losing]
    return found + _observe_again(graph, graph.graph_module, losing)


def _narrow_encodings(graph: ModelGraph, slices: Mapping[int, TensorSlice]) -> dict[str, Encoding]:
    """The encodings of what is left of quantized weights.

    Raises:
        PreconditionError: A block of columns would lose some of them.
    """
    found = {}
    for name, encoding in graph.encodings.items():
        site = graph.by_name[name]
        part = slices.get(id(graph.parameter(site)))
        if part is None:
            continue
        if encoding.block is not None and set(part.keep) - {encoding.axis}:
            raise PreconditionError(
                "its inputs share scales in blocks, which would be cut through",
                where=name,
                remedy="Quantize without blocks, or keep the shapes.",
            )
        rows = part.keep.get(encoding.axis)
        if rows is not None:
            own = rows_of(graph, site)
            left = rows[(rows >= own.start) & (rows < own.stop)] - own.start
            found[name] = encoding.rows(left)
    return found


def _record(graph: ModelGraph, planned: Iterable[Cut]) -> None:
    """Note which indices of the original are left, across any number of cuts."""
    for cut in planned:
        dims = graph.kept.setdefault(_name(cut), {})
        left = np.flatnonzero(cut.keep)
        dims[cut.dim] = dims[cut.dim][left] if cut.dim in dims else left


def _name(cut: Cut) -> str:
    return f"{cut.path}.{cut.attribute}" if cut.path else cut.attribute


def _removed(group: ChannelGroup, left: int, why: str) -> Decision:
    return Decision(group.name, "channels removed", why, f"{group.units} units", f"{left} units")


Models = tuple[nn.Module, GraphModule]


def _layers(models: Models, planned: Iterable[Cut]) -> dict[str, nn.Module]:
    """The layers that lose something, and the attention layers around them, by path.

    Raises:
        PreconditionError: One of them does more than its class.
    """
    found: dict[str, nn.Module] = {}
    for cut in planned:
        for path in {cut.path, cut.path.rpartition(".")[0]}:
            part = _submodule(models, path)
            if path == cut.path or isinstance(part, nn.MultiheadAttention):
                found[path] = part
    for path, part in found.items():
        _check_plain(part, path)
    return found


def _submodule(models: Models, path: str) -> nn.Module:
    for model in models:
        try:
            return model.get_submodule(path)
        except AttributeError:
            continue
    raise _stale(path, "there is no such layer")


def _stale(where: str, what: str) -> PreconditionError:
    return PreconditionError(
        what, where=where, remedy="Find the groups of the model as it is: channel_groups(graph)."
    )


def _check_plain(part: nn.Module, path: str) -> None:
    what = ""
    if parametrize.is_parametrized(part):
        what = "the layer is parametrized"
    elif part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
        what = "the layer has hooks or a forward of its own"
    elif isinstance(part, nn.MultiheadAttention) and (
        part._backward_hooks or part._backward_pre_hooks
    ):
        what = "the layer has hooks, and is to be replaced"
    if what:
        raise PreconditionError(
            f"{what}, so that its channels cannot be removed",
            where=path,
            remedy="Remove its hooks and merge its parametrizations first.",
        )


def _slices(models: Models, planned: Iterable[Cut]) -> dict[int, TensorSlice]:
    """What is left of every parameter and buffer, by its identity: tied ones are cut once."""
    found: dict[int, TensorSlice] = {}
    for cut in planned:
        name = _name(cut)
        tensor = _tensor(models, cut, name)
        if tensor.shape[cut.dim] != len(cut.keep):
            width = tensor.shape[cut.dim]
            raise _stale(name, f"is {width} wide along {cut.dim}, its group {len(cut.keep)}")
        part = found.get(id(tensor), TensorSlice(name, tensor, {}))
        found[id(tensor)] = replace(part, keep={**part.keep, cut.dim: as_indices(cut.keep)})
    for part in found.values():
        if part.tensor._backward_hooks or getattr(part.tensor, "_post_accumulate_grad_hooks", None):
            raise PreconditionError(
                "the parameter has hooks, which a new one would not have",
                where=part.name,
                remedy="Remove them, and register them again afterwards.",
            )
    return found


def _tensor(models: Models, cut: Cut, name: str) -> Tensor:
    for model in models:
        try:
            part = model.get_submodule(cut.path)
        except AttributeError:
            continue
        for table in (part._parameters, part._buffers):
            tensor = table.get(cut.attribute)
            if tensor is not None:
                return tensor
    raise _stale(name, "there is no such parameter or buffer")


def _narrow_attention(layers: dict[str, nn.Module]) -> list[tuple[nn.Module, HeadAttention]]:
    return [
        (part, HeadAttention.of(part, path))
        for path, part in layers.items()
        if isinstance(part, nn.MultiheadAttention)
    ]


def _replace_tensors(models: Models, new: dict[int, Tensor]) -> Iterator[nn.Module]:
    """Set new tensors wherever old ones are held; yields the layers that hold them."""
    for part in {id(part): part for model in models for part in model.modules()}.values():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        places = [(table, n) for table in tables for n, old in table.items() if id(old) in new]
        for table, name in places:
            table[name] = new[id(table[name])]
        if places:
            yield part


def _observe_again(
    graph: ModelGraph, module: GraphModule, losing: Iterable[ChannelGroup]
) -> list[Decision]:
    """Run one sample of the smaller model: it must run, and its sites are read from the run."""
    try:
        with matching_inputs(module) as given:
            call, expected = _run_graph(graph, module)
        for layer, channels in given.items():
            match_channels(layer, channels)
        decisions = _follow_graph(graph, call, expected)
        graph.sites = _named_as_before(graph.sites, observed_sites(graph))
    except Exception as error:
        names = ", ".join(group.name for group in losing)
        raise PostconditionError(
            f"without channels of {names} the model fails: {type(error).__name__}: {error}",
            where=type(graph.module).__name__,
            remedy="Keep all units of these groups, and please report it with the model.",
        ) from error
    return decisions


def _run_graph(graph: ModelGraph, module: GraphModule) -> tuple[Call, Any]:
    """What the graph returns for one sample, or for the whole batch if it needs that."""

    def run(call: Call) -> Any:
        torch.manual_seed(0)  # inside a fork of the random state
        return module(*placeholder_values(module, call.fresh()))

    sample = one_sample(graph.call)
    with untouched(module), evaluating(module):
        try:
            return sample, run(sample)
        except Exception:  # a model that needs its whole batch
            return graph.call, run(graph.call)


def _follow_graph(graph: ModelGraph, call: Call, expected: Any) -> list[Decision]:
    """Make the graph the model if the module's own forward does not follow the width.

    It may make a tensor for every channel, or compute with the number of channels of a layer, where
    the graph holds what was traced; and what it only does in training mode may not be in the graph.
    """
    if graph.rewritten:
        return []
    why = "its training mode may hold layers that the graph does not show, as wide as before"
    if not any(decision.what == _ONE_MODE for decision in graph.decisions):
        why = _difference(graph, call, expected)
    if not why:
        return []
    graph.rewritten = True
    return [Decision("", "the traced graph is the model now", why)]


def _difference(graph: ModelGraph, call: Call, expected: Any) -> str:
    """Why the module's own forward is not what the graph computes; empty if it is."""
    with untouched(graph.module), evaluating(graph.module):
        torch.manual_seed(0)
        try:
            same = equal_outputs(call.fresh()(graph.module), expected)
        except Exception as error:  # whatever the user's forward raises
            return f"its forward is written for the old width: {type(error).__name__}: {error}"
    return "" if same else "its forward computes something else at the new width"


def _named_as_before(before: Iterable[Site], found: Iterable[Site]) -> tuple[Site, ...]:
    """Give sites the names that rules and reports know them by; parts are told by their order."""

    def by_owner(sites: Iterable[Site]) -> dict[tuple[str, str], list[Site]]:
        table: dict[tuple[str, str], list[Site]] = {}
        for site in sorted(sites, key=lambda site: site.start):
            for owner in site.owners:
                table.setdefault(owner, []).append(site)
        return table

    found = tuple(found)
    known, now = by_owner(before), by_owner(found)
    named = {}
    for owner, sites in now.items():
        if len(sites) == len(known.get(owner, ())):
            named.update({id(n): o.name for n, o in zip(sites, known[owner], strict=True)})
    return tuple(replace(site, name=named.get(id(site), site.name)) for site in found)
