"""Running a traced model node by node on its example inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.fx import GraphModule, Interpreter

from passes.graph import ModelGraph
from passes.inputs import one_sample
from passes.isolation import evaluating, untouched
from passes.tracing.symbolic import placeholder_values

Runner = TypeVar("Runner", bound=Interpreter)


def run_sample(graph: ModelGraph, module: GraphModule, runner: Callable[[], Runner]) -> Runner:
    """Run one sample, or the whole batch if the model needs it, in evaluation mode.

    Args:
        graph: Has the example inputs.
        module: What is run; it is left as it was.
        runner: Makes an interpreter of the module; a new one for each attempt.

    Returns:
        The interpreter that has run.
    """
    with untouched(module), evaluating(module):
        for call in (one_sample(graph.call), graph.call):
            found = runner()
            torch.manual_seed(0)  # inside a fork of the random state
            try:
                found.run(*placeholder_values(module, call.fresh()))
            except Exception:
                if call is graph.call:
                    raise
                continue  # a model that needs its whole batch
            break
    return found
