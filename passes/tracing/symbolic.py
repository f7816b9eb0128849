"""Symbolic tracing with opaque leaves: what fails becomes the smallest leaf that contains it."""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer

from passes.graph import Leaf
from passes.inputs import Call

_TORCH = os.path.dirname(torch.__file__) + os.sep


class _Tracer(Tracer):
    """`torch.fx.Tracer` that knows its leaves and where it is when something fails."""

    def __init__(self, leaves: frozenset[str]) -> None:
        super().__init__()
        self.leaves = leaves
        self.running: list[str] = [""]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Opaque leaves, and what torch or a pass of ours treats as one layer."""
        return (
            module_qualified_name in self.leaves
            or getattr(m, "traced_as_layer", False) is True
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Remember the path; on an exception it stays where the failure is."""
        self.running.append(self.path_of_module(m))
        output = super().call_module(m, forward, args, kwargs)
        self.running.pop()
        return output


# Tensors that a model makes in its forward, by the attribute name that fx gives them.
Constants = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Trace:
    """A graph of the model in one mode, and what had to stay opaque.

    Attributes:
        graph: The traced graph; `None` when the model as a whole cannot be traced.
        leaves: Opaque leaves, in the order in which they were found.
        constants: Tensor constants that the graph refers to.
    """

    graph: Graph | None
    leaves: tuple[Leaf, ...]
    constants: Constants = field(default_factory=dict)


@contextmanager
def _clean_root(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Take off again what fx sets on the traced model: the tensor constants of its forward."""
    before = set(model.__dict__) | set(model._buffers)
    constants: dict[str, Tensor] = {}
    try:
        yield constants
    finally:
        for names in (model.__dict__, model._buffers):
            for name in [n for n in names if n not in before and n.startswith("_tensor_constant")]:
                value = names.pop(name)
                if isinstance(value, Tensor):
                    constants[name] = value


def _fixed(model: nn.Module, call: Call) -> tuple[dict[str, Any], frozenset[str]]:
    """Arguments that are no tensors: those given, and those left at their default.

    Returns:
        Their values by name, and which of them the call leaves out.
    """
    signature = inspect.signature(model.forward)
    bound = signature.bind(*call.args, **call.kwargs)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {n: p for n, p in signature.parameters.items() if p.kind not in kinds}
    absent = {n: p.default for n, p in named.items() if n not in bound.arguments}
    plain = bool | int | float | None
    given = {n: v for n, v in bound.arguments.items() if n in named and isinstance(v, plain)}
    return absent | given, frozenset(absent)


def _tidy(graph: Graph, fixed: Mapping[str, Any], absent: frozenset[str]) -> None:
    """Remove what fx leaves for fixed arguments: assertions, and placeholders of absent ones."""
    for node in list(graph.nodes):
        if node.op != "placeholder":
            continue
        name = str(node.target)
        stem = name if name in fixed else name.rsplit("_", 1)[0]
        if stem not in fixed:
            continue
        for user in list(node.users):
            _erase_assertion(graph, user)
        if stem in absent and not node.users:
            graph.erase_node(node)
        else:
            node.target = stem  # the name by which a caller passes it
    graph.set_codegen(torch.fx.graph.CodeGen())


def _erase_assertion(graph: Graph, node: Node) -> None:
    for user in list(node.users):
        _erase_assertion(graph, user)
    if not node.users:
        graph.erase_node(node)


def user_location(error: BaseException, model: nn.Module) -> str:
    """`file:line` of the innermost frame of the user's code in an exception, if there is one."""
    files = {_source(module) for module in model.modules()}
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if frame.filename in files:
            return f"{frame.filename}:{frame.lineno}"
    return ""


def _source(module: nn.Module) -> str:
    forward = getattr(type(module), "forward", None)  # a scripted module has none
    code: CodeType | None = getattr(forward, "__code__", None)
    file = code.co_filename if code is not None else ""
    return "" if file.startswith(_TORCH) else file


def reason(error: BaseException, model: nn.Module) -> str:
    """One line on why something failed, with the user's file and line."""
    first = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    place = user_location(error, model)
    return f"{type(error).__name__}: {first}" + (f" ({place})" if place else "")


def trace_mode(
    model: nn.Module, call: Call, known: tuple[Leaf, ...] = (), attempts: int = 1000
) -> Trace:
    """Trace the model in its present mode.

    Whenever tracing fails, the innermost module that was running becomes an opaque leaf, and
    tracing starts again.

    Args:
        model: The model, in the mode to be traced.
        call: Its example arguments.
        known: Leaves that must be opaque from the start.
        attempts: Upper bound on the number of failures.
    """
    leaves = {leaf.path: leaf for leaf in known}
    if "" in leaves:
        return Trace(None, known)
    for _ in range(attempts):
        tracer = _Tracer(frozenset(leaves))
        try:
            fixed, absent = _fixed(model, call)
            with _clean_root(model) as constants:
                graph = tracer.trace(model, concrete_args=fixed or None)
            if fixed:
                _tidy(graph, fixed, absent)
        except Exception as error:
            path = tracer.running[-1]
            leaves[path] = Leaf(path, reason(error, model))
            if not path:
                return Trace(None, tuple(leaves.values()))
        else:
            return Trace(graph, tuple(leaves.values()), constants)
    return Trace(None, (*leaves.values(), Leaf("", f"more than {attempts} failures")))


def owners(node: Node) -> list[str]:
    """Paths of the modules that were running when the node was made, the model itself first."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    if node.op == "call_module" and paths and paths[-1] == node.target:
        paths.pop()
    return ["", *paths]


def owner(node: Node) -> str:
    """Path of the innermost module whose `forward` made the node; empty for the model itself."""
    return owners(node)[-1]


def placeholder_values(module: GraphModule, call: Call) -> list[Any]:
    """The call's arguments in the order of the graph's inputs; `*args` takes the rest."""
    values: list[Any] = []
    rest = list(call.args)
    for node in module.graph.nodes:
        if node.op != "placeholder":
            continue
        name = str(node.target)
        if name.startswith("*"):
            values.extend(rest)
            rest = []
        elif rest:
            values.append(rest.pop(0))
        else:
            values.append(call.kwargs.get(name))
    return values


def graph_module(model: nn.Module, trace: Trace) -> GraphModule:
    """The graph as a module that shares the model's layers, parameters and training flags.

    Args:
        model: The traced model.
        trace: Its trace, with a graph.
    """
    if trace.graph is None:
        raise ValueError("the model as a whole is opaque: there is no graph")
    model.__dict__.update(trace.constants)
    try:
        module = GraphModule(model, trace.graph, class_name=type(model).__name__)
    finally:
        for name in trace.constants:
            del model.__dict__[name]
    follow_flags(module, model)
    return module


def follow_flags(module: GraphModule, model: nn.Module) -> None:
    """Give every module of the graph the training flag of its counterpart or its owner."""
    flags = {path: part.training for path, part in model.named_modules()}
    for path, part in module.named_modules():
        owner_path = path
        while owner_path not in flags:
            owner_path = owner_path.rpartition(".")[0]
        part.training = flags[owner_path]
