"""The channel structure of a model, and the proof that channels can be removed from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from energy_model.hardware import Hardware, load_hardware
from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.isolation import copied, preserved_random_state
from passes.rewrite.gates import insert_gates
from passes.rewrite.shrink import shrink
from passes.structure.costs import StructureCosts
from passes.structure.groups import ChannelGroups, channel_groups
from passes.structure.state import checked_state, random_state
from passes.tracing.trace import trace
from transform.arguments import require_seed
from transform.require import require_model

_COSTS = ("params", "macs", "energy", "nonzeros")


@dataclass(frozen=True, slots=True)
class Proof:
    """A gated model against the same model shrunk.

    Attributes:
        seed: Of the random state.
        error: Largest absolute difference of any output.
        largest: Largest absolute output of the gated model.
        before: Costs of the whole model.
        after: Costs of the shrunk one.
    """

    seed: int
    error: float
    largest: float
    before: dict[str, int | float]
    after: dict[str, int | float]

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        """Two lines for people."""
        shares = ", ".join(
            f"{key} {self.after[key]:,} of {value:,} ({100 * self.after[key] / value:.1f} %)"
            for key, value in self.before.items()
            if value
        )
        found = "every output is zero, so that nothing is shown: give the model weights"
        if self.largest:
            relative = self.error / self.largest
            found = f"gated and shrunk differ by {relative:.1e} of the largest output"
        return f"random half of the channels, seed {self.seed}: {shares}\n{found}"


@dataclass(frozen=True, eq=False)
class Structure:
    """Which channels of a model live or die together, and what it is without some of them.

    A state says of every free group which of its units stay: booleans by name of the group, as
    `random_state` returns; groups that it does not name stay whole.

    Attributes:
        graph: The traced copy of the model; it is not changed.
        groups: The channel groups, free and frozen; prints as a table.
        hardware: Whose channel multiple and energy count.
    """

    graph: ModelGraph
    groups: ChannelGroups
    hardware: Hardware

    def random_state(self, seed: int) -> dict[str, NDArray[np.bool_]]:
        """Every free group keeps a random half of its units, rounded to the channel multiple.

        Raises:
            ArgumentError: The seed is no whole number from 0.
        """
        number = require_seed(seed)
        return random_state(self.groups, number, self.hardware.channel_multiple)

    def gated(self, state: Mapping[str, Any]) -> nn.Module:
        """The model with dropped channels set to zero wherever they are read.

        Raises:
            ArgumentError: The state does not fit the groups.
        """
        return insert_gates(self.graph, self.groups, checked_state(self.groups, state))

    def shrunk(self, state: Mapping[str, Any]) -> nn.Module:
        """The model without the dropped channels: smaller layers, the same function as `gated`.

        Raises:
            ArgumentError: The state does not fit the groups.
        """
        checked = checked_state(self.groups, state)
        device = next((p.device for p in self.graph.module.parameters()), torch.device("cpu"))
        graph = trace(copied(self.graph.module, device), self.graph.call)
        shrink(graph, self.groups, checked)
        return graph.runnable

    def proof(self, seed: int) -> Proof:
        """Drop a random half of every free group and compare `gated` with `shrunk`.

        The model's own modes do not count: both run in evaluation mode, on the example inputs.
        """
        state = self.random_state(seed)
        gated, shrunk = self.gated(state).eval(), self.shrunk(state).eval()
        with torch.no_grad(), preserved_random_state():
            wanted, found = (
                [x for x in pytree.tree_leaves(self.graph.call.fresh()(m)) if isinstance(x, Tensor)]
                for m in (gated, shrunk)
            )
        largest = max((float(x.abs().max()) for x in wanted if x.numel()), default=0.0)
        error = max(
            (float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True) if a.numel()),
            default=0.0,
        )
        return Proof(seed, error, largest, self.costs(), self.costs(state))

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object: the groups, and why some are frozen."""
        return {
            "groups": [
                {
                    "name": group.name,
                    "units": group.units,
                    "unit_size": group.unit_size,
                    "frozen": group.frozen,
                    "why": group.why,
                    "members": [[member.name, member.dim, member.role] for member in group.members],
                }
                for group in self.groups
            ],
            "decisions": [decision.to_dict() for decision in self.groups.decisions],
        }

    def costs(self, state: Mapping[str, Any] | None = None) -> dict[str, int | float]:
        """Exact costs of the shrunk model, by formula.

        Args:
            state: A state; `None` is the whole model.

        Returns:
            `params`, `macs` of one sample, `energy` in multiples of one MAC, and `nonzeros`.

        Raises:
            ArgumentError: The state does not fit the groups.
        """
        costs = StructureCosts(self.graph, self.groups, self.hardware, _COSTS)
        return costs.values(checked_state(self.groups, state or {}))

    def __str__(self) -> str:
        """The table of the groups, and why some are frozen."""
        return str(self.groups)


def structure(
    model: nn.Module,
    example_inputs: Any,
    hardware: str | Path | Mapping[str, Any] | Hardware = "eyeriss",
) -> Structure:
    """Find the channel groups of a model; the model is not changed.

    Args:
        model: Any PyTorch model.
        example_inputs: What it is called with.
        hardware: Profile whose channel multiple counts: a name, a YAML file or a `Hardware`.

    Raises:
        TraceError: The model fails on its example inputs.
        ArgumentError: An argument is malformed.
    """
    require_model(model)
    profile, call = load_hardware(hardware), as_call(model, example_inputs)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    graph = trace(copied(model, device), call)
    return Structure(graph, channel_groups(graph), profile)
