"""From a model and example inputs to a `ModelGraph`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from energy_model.errors import PreconditionError, TraceError
from passes.graph import Decision, Leaf, ModelGraph, Site
from passes.inputs import Call, one_sample
from passes.isolation import evaluating, untouched
from passes.quantize.widths import carried
from passes.tracing.align import Mismatch, compare, insert_modes
from passes.tracing.observe import Observation, Product, observe
from passes.tracing.sites import build_sites, held_parameters
from passes.tracing.symbolic import (
    Trace,
    follow_flags,
    graph_module,
    owner,
    placeholder_values,
    reason,
    trace_mode,
    user_location,
)


@dataclass
class _NodeError(Exception):
    """A node of the traced graph failed where the model itself did not."""

    node: Node
    error: Exception


class _Checked(Interpreter):
    """Runs a graph and names the node that fails."""

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        try:
            return super().run_node(n)
        except Exception as error:
            raise _NodeError(n, error) from error


def trace(model: nn.Module, call: Call, *, train: bool = True) -> ModelGraph:
    """Trace a model, once in each mode, and find its weights.

    Args:
        model: The model; its modes are restored, its weights are shared with the graph.
        call: Example arguments, any batch size.
        train: Also trace the training mode, so that the graph can be trained. Analysis alone does
            not need it.

    Returns:
        The graph in the model's own mode, with every opaque leaf and its reason.

    Raises:
        TraceError: The model itself fails on the example.
        PreconditionError: The model has no weighted layer.
    """
    with untouched(model), evaluating(model):
        sample, observation = _observe(model, call)
        evaluation = _evaluation_graph(model, sample, observation.output)
    decisions: list[Decision] = []
    module = None
    if evaluation.graph is not None:
        if train:
            evaluation, module = _both_modes(model, sample, evaluation, decisions)
        else:
            module = graph_module(model, evaluation)
    leaves = tuple(leaf for leaf in evaluation.leaves if leaf.path in observation.calls)
    sites = build_sites(model, observation.products, leaves)
    if not sites:
        raise PreconditionError(
            "no weighted layer takes part in the model's output",
            where=type(model).__name__,
            remedy="A convolution, linear or recurrent layer is needed; check the example inputs.",
        )
    decisions.extend(Decision(leaf.path, "kept opaque", leaf.reason) for leaf in leaves)
    return ModelGraph(model, module, call, sites, leaves, decisions)


def observed_sites(graph: ModelGraph) -> tuple[Site, ...]:
    """The sites of a rewritten graph, found by running one sample of what it runs now.

    Widths of operands are those that the sites of the graph have.
    """
    model = graph.runnable
    with untouched(model), evaluating(model):
        _, observation = _observe(model, graph.call)
    return carried(graph.sites, build_sites(model, observation.products, graph.leaves))


def _observe(model: nn.Module, call: Call) -> tuple[Call, Observation]:
    """Run one sample; if the model needs its batch, run that and divide."""
    parameters = [held.tensor for held in held_parameters(model)]
    sample = one_sample(call)
    torch.manual_seed(0)  # inside a fork of the random state
    try:
        return sample, observe(model, sample.fresh(), parameters)
    except Exception as error:
        batch = call.batch_size or 1
        if batch == 1:
            raise _run_failed(model, call, error) from error
    torch.manual_seed(0)
    try:
        observation = observe(model, call.fresh(), parameters)
    except Exception as error:
        raise _run_failed(model, call, error) from error
    observation.products[:] = [_divided(p, batch) for p in observation.products]
    return call, observation


def _divided(product: Product, batch: int) -> Product:
    """One sample's part of a product that was observed on a whole batch."""
    shape, count = product.shape, product.count
    if not shape.is_linear:
        return replace(product, count=max(1, count // batch))
    positions = max(1, shape.output_size[0] // batch)
    single = type(shape).linear(shape.in_channels, shape.out_channels, positions, shape.groups)
    return replace(product, shape=single)


def _run_failed(model: nn.Module, call: Call, error: Exception) -> TraceError:
    shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}".replace("torch.", "") for t in call.tensors())
    place = user_location(error, model)
    return TraceError(
        f"the model fails on the example inputs [{shapes}]: {type(error).__name__}: {error}",
        where=place or type(model).__name__,
        remedy="Pass example_inputs that model(...) accepts: right shapes, dtype and device.",
    )


def _evaluation_graph(model: nn.Module, sample: Call, expected: Any) -> Trace:
    """Trace the evaluation mode; what disagrees with the model becomes an opaque leaf."""
    leaves: tuple[Leaf, ...] = ()
    while True:
        traced = trace_mode(model, sample, leaves)
        if traced.graph is None:
            return traced
        failure = _check(model, graph_module(model, traced), sample, expected)
        if failure is None:
            return traced
        if failure.path in {leaf.path for leaf in traced.leaves}:
            failure = Leaf("", failure.reason)
        leaves = (*traced.leaves, failure)


def _check(model: nn.Module, module: GraphModule, sample: Call, expected: Any) -> Leaf | None:
    """The leaf that must become opaque for the graph to equal the model; `None` if it does."""
    torch.manual_seed(0)
    try:
        output = _Checked(module).run(*placeholder_values(module, sample.fresh()))
    except _NodeError as failure:
        return Leaf(owner(failure.node), reason(failure.error, model))
    if not equal_outputs(output, expected):
        return Leaf("", "the traced graph computes something else than the model")
    return None


def equal_outputs(a: Any, b: Any) -> bool:
    """Whether two outputs have the same structure and the same bits; NaN equals NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return a.device.type == "meta" or bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(equal_outputs(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(equal_outputs, a, b))
    if is_dataclass(a) and type(a) is type(b):
        names = [field.name for field in fields(a)]
        return all(equal_outputs(getattr(a, n), getattr(b, n)) for n in names)
    try:
        return bool(a == b)
    except (RuntimeError, TypeError, ValueError):
        return False


def _both_modes(
    model: nn.Module, sample: Call, evaluation: Trace, decisions: list[Decision]
) -> tuple[Trace, GraphModule | None]:
    """Trace the training mode as well and join both."""
    while evaluation.graph is not None:
        training = _traced(model, sample, evaluation.leaves, train=True)
        if len(training.leaves) > len(evaluation.leaves) and training.graph is not None:
            evaluation = _traced(model, sample, training.leaves, train=False)
            continue
        found = compare(evaluation, training)
        module = graph_module(model, evaluation)
        if not isinstance(found, Mismatch):
            insert_modes(module, found)
            follow_flags(module, model)
            return evaluation, module
        further = _with_suspect(model, sample, evaluation, found)
        if further is None:
            why = "the graph of the training mode differs in the model's own forward"
            decisions.append(Decision("", "traced in evaluation mode only", why))
            return evaluation, module
        evaluation = further
    return evaluation, None


def _with_suspect(
    model: nn.Module, sample: Call, evaluation: Trace, mismatch: Mismatch
) -> Trace | None:
    """Trace with the innermost suspect opaque that brings the two modes closer; `None` if none."""
    known = {leaf.path for leaf in evaluation.leaves}
    for path in mismatch.suspects:
        if not path or path in known:
            continue
        leaf = Leaf(path, "its structure differs between training and evaluation mode")
        candidate = _traced(model, sample, (*evaluation.leaves, leaf), train=False)
        training = _traced(model, sample, candidate.leaves, train=True)
        found = compare(candidate, training)
        if not isinstance(found, Mismatch) or found.index > mismatch.index:
            return candidate
    return None


def _traced(model: nn.Module, sample: Call, leaves: tuple[Leaf, ...], *, train: bool) -> Trace:
    with untouched(model), evaluating(model):
        model.train(train)
        return trace_mode(model, sample, leaves)
