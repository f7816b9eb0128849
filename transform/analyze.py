"""`transform.analyze`: what every layer of a model costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from energy_model.cost import CostTable
from energy_model.hardware import Hardware, load_hardware
from passes.analysis.costs import cost_table
from passes.inputs import as_call
from passes.tracing.trace import trace
from transform.require import require_model


def analyze(
    model: nn.Module,
    example_inputs: Any,
    hardware: str | Path | Mapping[str, Any] | Hardware = "eyeriss",
) -> CostTable:
    """Cost every weighted layer of a model, per sample.

    Every convolution and linear layer has its row, in order of execution: those inside attention,
    recurrent layers and submodules that cannot be traced too, functional calls too. The model and
    the global random state are left as they were; floating values of the example are ignored.

    Args:
        model: Any PyTorch model.
        example_inputs: A tensor, a tuple of arguments, or a dict by argument name; any batch size,
            the batch first.
        hardware: A profile's name, a YAML file, a mapping or a `Hardware`.

    Returns:
        A table that prints; `.rows`, `.total` and `.to_dict()`. Energies are integers in multiples
        of one MAC's energy (Yang, Zhu, Liu, ICLR 2019).

    Raises:
        TraceError: The model fails on the example.
        PreconditionError: There is no weighted layer.
        HardwareError: Unknown or malformed profile.
    """
    profile = load_hardware(hardware)
    require_model(model)
    return cost_table(trace(model, as_call(model, example_inputs), train=False), profile)
