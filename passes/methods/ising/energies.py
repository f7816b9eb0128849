"""What a candidate's energy is made of: its outputs, the Ising couplings, both, or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from energy_model.errors import ArgumentError, PreconditionError
from passes.graph import ModelGraph
from passes.inputs import Batch, Call
from passes.ising.gate_gradients import flip_changes, gate_gradients
from passes.ising.local_search import best_swaps
from passes.ising.repair import Repair
from passes.ising.swaps import descend_swaps
from passes.ising.task_energy import combined, energy_scales, task_energy
from passes.methods.ising.candidates import Candidates
from passes.methods.ising.config import Ising
from passes.methods.ising.ising_part import IsingPart
from passes.methods.ising.search import Energies, Neighbour
from passes.methods.ising.setting import Setting, everything
from passes.rewrite.live_gates import LiveGates


def by_chance(population: Tensor, key: bytes) -> Tensor:
    """A number from 0 to 1 for each state, by chance and the same for the same state.

    So a state that was once the best stays it, as with any other energy.

    Args:
        population: bool `(states, nodes)`.
        key: Of the numbers.

    Returns:
        float64 `(states,)`.
    """
    hashes = [hashlib.blake2b(row.tobytes(), digest_size=6, key=key) for row in population.numpy()]
    numbers = [int.from_bytes(found.digest(), "big") / 2**48 for found in hashes]
    return torch.tensor(numbers, dtype=torch.float64)


class CandidateEnergies:
    """Compares keep-states of a model whose weights change from one comparison to the next.

    Args:
        graph: The model, with gates.
        setting: The nodes and the budget.
        gates: The gates in the model.
        config: Which energy, and how candidates are run.
        generator: For energies by chance.
    """

    def __init__(
        self,
        graph: ModelGraph,
        setting: Setting,
        gates: LiveGates,
        config: Ising,
        generator: torch.Generator,
    ) -> None:
        self._setting, self._gates = setting, gates
        self._config, self._generator = config, generator
        self._task = task_energy(config.task, config.temperature)
        self._candidates = Candidates(gates, config)
        self._ising = IsingPart(graph, setting, gates, config.inter)
        self._scales: tuple[float, ...] = ()
        self._chance = b""
        if config.energy == "random":
            self._chance = int(torch.randint(2**62, (), generator=generator)).to_bytes(8, "big")

    @property
    def backend(self) -> str:
        """How candidates are run; empty as long as none was."""
        return self._candidates.backend

    def aim(self, repair: Repair) -> None:
        """Let the Ising energy favour states near a budget, as it is now."""
        if self._config.couples:
            self._ising.aim(repair)

    def refresh(self, calls: Iterable[Call]) -> None:
        """Let the Ising couplings follow the weights, if they play a part.

        Args:
            calls: See `IsingPart.refresh`.
        """
        if self._config.couples:
            self._ising.refresh(calls)

    def lowest(self, start: Tensor | None, scores: Tensor) -> Tensor | None:
        """A state of low Ising energy, bool `(nodes,)`; `None` where that plays no part.

        Args:
            start: Where to begin; `None` is with everything.
            scores: How much each node matters, `(nodes,)`.
        """
        if not self._config.couples:
            return None
        row = everything(self._setting.layout) if start is None else start
        return self._ising.lowest(row, scores, self._generator)

    def on(self, batch: Batch | None) -> Energies:
        """Energies of populations on some samples, float64 `(states,)`.

        Args:
            batch: The samples; `None` where candidates are not run.
        """

        def energies(population: Tensor) -> Tensor:
            if self._config.energy == "random":
                return by_chance(population, self._chance)
            if self._config.energy == "ising":
                return self._ising.energy(population)
            assert batch is not None
            task = self._compared(population, batch)
            if not self._config.couples:
                return task
            ising = self._ising.energy(population)
            if not self._scales:
                self._scales = energy_scales(task, ising)
            return combined(task, ising, self._config.ising_weight, self._scales)

        return energies

    def better(self, batch: Batch | None) -> Neighbour | None:
        """Finds a neighbour of a state with a lower energy; `None` without a local search.

        Swaps inside the groups, chosen by what they change exactly for the Ising energy, and by the
        first-order changes of single flips for others.

        Args:
            batch: As for `on`.
        """
        if self._config.search != "de+ls" or self._config.energy == "random":
            return None

        def swapped(row: Tensor) -> Tensor:
            count = self._config.local_flips
            if self._config.energy == "ising":
                return descend_swaps(self._ising.energy, row, count)
            assert batch is not None
            # To first order only: fewer swaps may do where many fail, again and again.
            count = int(torch.randint(count, (), generator=self._generator)) + 1
            changes = self._slopes(row, batch)
            if changes is None:
                return row
            if self._config.couples and self._scales:
                ising = self._ising.energy.flip_deltas(row[None])[0]
                changes = combined(changes, ising, self._config.ising_weight, self._scales)
            return best_swaps(row[None], changes, count, self._setting.layout)[0]

        return swapped

    def state_dict(self) -> dict[str, Any]:
        """What a resumed search needs: the back end, the scales and the couplings."""
        scales, ising = list(self._scales), self._ising.state_dict()
        return {"backend": self.backend, "scales": scales, "ising": ising}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._candidates.use(str(state["backend"]))
        self._scales = tuple(float(scale) for scale in state["scales"])
        self._ising.load_state_dict(state["ising"])

    def _compared(self, population: Tensor, batch: Batch) -> Tensor:
        # First, so that a back end is chosen on the population.
        outputs = self._candidates.outputs(population, batch.call)
        return self._task(outputs, self._targets(batch), self._dense(batch))

    def _slopes(self, row: Tensor, batch: Batch) -> Tensor | None:
        """What flips change, to first order; `None` where the energy is no finite number.

        Raises:
            ArgumentError: The user's energy has no gradient.
        """
        dense = self._dense(batch)

        def energy(outputs: Any, targets: Any) -> Tensor:
            return self._task([outputs], targets, dense)[0]

        try:
            found = gate_gradients(
                self._gates, row, batch.call, self._targets(batch), energy, self._config.norms
            )
        except PreconditionError:
            return None  # such a state loses where states are compared
        except (ArgumentError, RuntimeError) as error:
            if self._task.user is None:
                raise
            raise ArgumentError(
                f"the energy has no gradient by the outputs: {str(error).splitlines()[0]}",
                where="Ising.energy",
                remedy="Return a tensor that is computed from the outputs, or search by 'ratio-de' "
                "or 'de', which need no gradient.",
            ) from error
        return flip_changes(found, row)

    def _dense(self, batch: Batch) -> Any:
        """What the whole network returns, if the energy compares with that."""
        return self._candidates.whole(batch.call) if self._task.needs_dense else None

    def _targets(self, batch: Batch) -> Any:
        return Call((batch.targets,)).to(self._gates.device).args[0]
