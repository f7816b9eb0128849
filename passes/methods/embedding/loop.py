"""The search: propose, train up the ladder, learn, and again; all that happened is in the record.

After Cao, Wang, Kitani, "Learnable Embedding Space for Efficient Neural Architecture Compression",
ICLR 2019, algorithm 1. A search that was killed goes on from its record: what was proposed is
evaluated, what was evaluated is not, and the proposals that follow are those of a search that was
never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energy_model.errors import StorageError
from passes.architecture.genotype import Genotype
from passes.derived_seed import derived_seed
from passes.embedding.candidates import Evaluated, History, Space, candidate_random
from passes.methods.embedding.climb import Climb
from passes.methods.embedding.ledger import Row
from passes.storage.atomic import write_file
from passes.storage.tensors import load_tensors, save_tensors

if TYPE_CHECKING:  # Gaussian processes take long to import, and only a search needs them.
    from passes.embedding.proposals import Proposer

_STATE = "proposer-{}.safetensors"


@dataclass
class ArchitectureSearch:
    """A search over the students of one teacher.

    Attributes:
        space: The students.
        proposer: Chooses what is evaluated next.
        climb: Trains, and holds the record.
        steps: How often students are proposed.
        batch: How many at a time.
        seed: Of all that is random.
        told: Called with a row for the history after every step; JSON values.
        proposing: Seconds that went into proposals, without those of a search that was killed.
    """

    space: Space
    proposer: Proposer
    climb: Climb
    steps: int
    batch: int
    seed: int
    told: Callable[[dict[str, Any]], None] = lambda row: None
    proposing: float = field(default=0.0, init=False)

    def run(self) -> None:
        """Search until all steps are done, or the space has nothing new.

        Raises:
            StorageError: The record lacks what a resumed search needs, or the disk refuses.
        """
        last = max((row.step for row in self.climb.ledger.rows()), default=-1)
        if last >= 0:
            self._load_proposer(last)
            self._finish(last)
        for step in range(last + 1, self.steps):
            if not self._propose(step):
                break
            self._finish(step)

    @property
    def _folder(self) -> Path:
        return self.climb.ledger.path.parent

    def _propose(self, step: int) -> bool:
        """Write down what is evaluated in a step; whether there is anything."""
        rng = candidate_random(self.seed, step)
        start = time.perf_counter()
        genotypes = self.proposer.propose(self._history(), self.batch, rng)
        self.proposing += time.perf_counter() - start
        if not genotypes:
            return False
        # First the state, then the rows: a step that is in the record has its state beside it.
        path = self._folder / _STATE.format(step)
        state = {name: tensor.contiguous() for name, tensor in self.proposer.state_dict().items()}
        write_file(path, lambda draft: save_tensors(draft, state))
        self.climb.ledger.add(self._row(step, slot, one) for slot, one in enumerate(genotypes))
        for old in self._folder.glob(_STATE.format("*")):
            if old != path:
                old.unlink(missing_ok=True)
        return True

    def _row(self, step: int, slot: int, genotype: Genotype) -> Row:
        costs, seed = self.space.cost(genotype), derived_seed(self.seed, step, slot)
        return Row(step, slot, 0, genotype.digest, genotype.to_dict(), costs, seed)

    def _finish(self, step: int) -> None:
        own = self.climb.finish(step)
        self.told(self._event(step, own))

    def _history(self) -> History:
        """What was evaluated, each student once, on the last rung that it was trained for."""
        last = {row.digest: row for row in self.climb.ledger.rows()}
        relative = self.climb.reward.relative
        return History(
            tuple(
                Evaluated(Genotype.from_dict(row.genotype), relative(row.accuracy or 0.0), row.rung)
                for row in last.values()
            )
        )

    def _event(self, step: int, own: Sequence[Row]) -> dict[str, Any]:
        """What the history says of a step."""
        rows = self.climb.ledger.rows()
        ended = [row for row in rows if row.status == "done"]
        best = max(ended, key=lambda row: row.reward or 0.0, default=None)
        told: dict[str, Any] = {
            "step": step,
            "evaluated": len({row.digest for row in rows}),
            "failed": sum(row.status == "failed" for row in own),
            "epochs": sum(self.climb.ladder.epochs(row.rung) for row in rows),
            "fits": [report.to_dict() for report in self.proposer.reports],
        }
        if best is not None:
            told |= {"best": best.digest, "reward": best.reward, "accuracy": best.accuracy}
        return told

    def _load_proposer(self, step: int) -> None:
        path = self._folder / _STATE.format(step)
        if not path.exists():
            raise StorageError(
                f"what the search had learned at step {step} is not beside its record",
                where=str(path),
                remedy="Remove the folder of the search; it starts anew.",
            )
        self.proposer.load_state_dict(load_tensors(path))
