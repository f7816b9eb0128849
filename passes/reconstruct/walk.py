"""Walks along a traced graph: the values of several batches, node by node, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from energy_model.errors import PreconditionError
from passes.inputs import Call
from passes.isolation import evaluating, untouched
from passes.tracing.symbolic import placeholder_values

MEMORY = 2**30
"""Bytes of activations that a walk keeps; batches beyond it are run anew from their inputs."""


Batches = Callable[[int], Iterator[Call]]
"""Gives the calls of the first n batches, the same ones every time."""


def read_batches(batches: Batches, count: int) -> list[Call]:
    """The first batches.

    Raises:
        PreconditionError: There is none.
    """
    calls = list(islice(batches(count), count))
    if not calls:
        raise PreconditionError(
            "there is no batch of inputs to reconstruct layers with",
            where="data",
            remedy="Pass data that yields at least one batch.",
        )
    return calls


@contextmanager
def at_rest(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes, buffers and random state are restored."""
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(untouched(model))
            stack.enter_context(evaluating(model))
        yield


class Walk:
    """Runs a graph on some batches up to one node after another.

    Layers may be changed between two steps as long as they lie ahead. What later nodes need is kept
    for every batch, up to a number of bytes, so that a walk along the whole graph costs about one
    run of it.

    Args:
        module: The graph, in evaluation mode, run without gradients.
        calls: The batches.
        memory: Bytes of activations to keep.
    """

    def __init__(self, module: GraphModule, calls: Sequence[Call], memory: int = MEMORY) -> None:
        self.module = module
        self.calls = calls
        self.memory = memory
        self.nodes: list[Node] = list(module.graph.nodes)
        self._position = {node: number for number, node in enumerate(self.nodes)}
        self._last = {
            node: max((self._position[user] for user in node.users), default=-1)
            for node in self.nodes
        }
        self._states: dict[int, tuple[int, dict[Node, Any]]] = {}
        self._bytes: dict[int, int] = {}

    def layer(self, node: Node) -> nn.Module:
        """The module that a node calls."""
        return self.module.get_submodule(str(node.target))

    def calls_of(self, path: str) -> list[Node]:
        """The nodes that call the module at a path."""
        return [n for n in self.nodes if n.op == "call_module" and n.target == path]

    def inputs(self, node: Node) -> Iterator[Tensor]:
        """The first tensor that a node is given, batch by batch."""
        for number in range(len(self.calls)):
            yield self._before(number, node).env[node.all_input_nodes[0]]

    def outputs(self, node: Node) -> Iterator[Tensor]:
        """What a node returns, batch by batch."""
        for number in range(len(self.calls)):
            yield self._run(self._before(number, node), node)

    def _before(self, number: int, node: Node) -> Interpreter:
        """A batch with everything computed that comes before a node."""
        stop = self._position[node]
        start, env = self._states.pop(number, (0, {}))
        if start > stop:
            start, env = 0, {}
        runner = Interpreter(self.module, garbage_collect_values=False)
        runner.env = env
        if start == 0:
            runner.args_iter = iter(placeholder_values(self.module, self.calls[number].fresh()))
        for position in range(start, stop):
            step = self.nodes[position]
            env[step] = self._run(runner, step)
            for source in (step, *step.all_input_nodes):
                if self._last[source] <= position:
                    env.pop(source, None)
        self._keep(number, stop, env)
        return runner

    def _run(self, runner: Interpreter, node: Node) -> Any:
        try:
            return runner.run_node(node)
        except Exception as error:
            raise PreconditionError(
                f"the model fails on a batch of data: {type(error).__name__}: {error}",
                where=str(node.target),
                remedy="Every batch must be one that the model accepts, as the example inputs are.",
            ) from error

    def _keep(self, number: int, position: int, env: dict[Node, Any]) -> None:
        """Remember a batch, if there is room."""
        tensors = [t for t in pytree.tree_leaves(list(env.values())) if isinstance(t, Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        self._bytes[number] = 0
        size = sum(storages.values())
        if sum(self._bytes.values()) + size <= self.memory:
            self._bytes[number] = size
            self._states[number] = (position, env)
