"""The interface of a method, and what it may use.

A method is planned, prepared, trained through hooks, and finalized:

    observe(graph, run)                    gather what the plan needs from data
    plan(graph, costs, limits) -> Plan     pure; raises InfeasibleBudget
    prepare(graph, plan, run)              attach masks, quantizers, gates
    next_phase, on_phase_start, on_loss, on_gradients, on_step, on_epoch, on_phase_end
    finalize(graph, run)                   bake; afterwards the budget holds
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from energy_model.cost import CostTable
from energy_model.latency import LatencyModel
from energy_model.resolved import ResolvedLimit
from energy_model.timing import Timing
from energy_model.widths import Widths
from passes.graph import ModelGraph
from passes.inputs import Batch, Call
from passes.methods.config import MethodConfig
from passes.methods.phases import Phase, PhaseEnd
from passes.methods.plan import Plan

if TYPE_CHECKING:
    from passes.methods.embedding.record import SearchRecord
    from passes.methods.embedding.trainer import CandidateTrainer


@dataclass(frozen=True, slots=True)
class Run:
    """What a method may use from above.

    Attributes:
        generator: The only source of randomness.
        device: Where the model is.
        one_shot: Nothing is trained after `prepare`.
        further: The model is what an earlier run has left of the original, whose costs are the
            bases of the limits.
        limits: The budget in absolute terms.
        costs: Costs of the original, and the hardware they belong to.
        total_steps: Optimizer steps of one phase of the training.
        epoch_steps: Optimizer steps of one epoch.
        gradients: Function of (model, number of batches): the mean gradient of the loss by name of
            the parameter, in evaluation mode; the model is left as it was. `None` without labels.
        labelled: Function of the largest number wanted: one batch of labelled samples on the
            device, the same ones for the same number, the classes balanced where targets are
            classes; it returns `None` if the data has no targets. `None` without data.
        batches: Function of the largest number wanted: unlabelled calls on the device, the same
            ones whenever it is asked. `None` without data.
        bits: Bits that the weights of an earlier result have, by name of the site; of the model
            that is compressed further.
        archive: Function of a finished model, which it leaves alone: bytes of its archive.
        size: The same of its ONNX file.
        dense_size: Function of a model as it is, which it leaves alone: bytes of the ONNX file that
            holds every weight, zeros and what is dead included.
        latency: The same: how long its exported file takes, really measured.
        latency_model: Function of a traced model and what its channel counts are to be multiples
            of: predicts the latency of keep-states, fitted to networks that are measured when it is
            first asked. The model is left alone.
        trainer: Trains and scores other models in the place of the one that is compressed; `None`
            without labelled data or without validation data.
    """

    generator: torch.Generator = field(default_factory=torch.Generator)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    one_shot: bool = True
    further: bool = False
    limits: tuple[ResolvedLimit, ...] = ()
    costs: CostTable | None = None
    total_steps: int = 0
    epoch_steps: int = 0
    gradients: Callable[[nn.Module, int], dict[str, Tensor]] | None = None
    labelled: Callable[[int], Batch | None] | None = None
    batches: Callable[[int], Iterator[Call]] | None = None
    bits: Mapping[str, int] = field(default_factory=dict)
    archive: Callable[[ModelGraph], int] | None = None
    size: Callable[[ModelGraph], int] | None = None
    dense_size: Callable[[ModelGraph], int] | None = None
    latency: Callable[[ModelGraph], Timing] | None = None
    latency_model: Callable[[ModelGraph, int], LatencyModel] | None = None
    trainer: CandidateTrainer | None = None


class Method(ABC):
    """Brings a traced model within its budget.

    Args:
        config: The method's configuration.
    """

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    def observe(self, graph: ModelGraph, run: Run) -> None:  # noqa: B027 -- a hook
        """Gather what `plan` needs from the run, such as gradients; nothing is changed."""

    @abstractmethod
    def plan(
        self,
        graph: ModelGraph,
        costs: CostTable,
        limits: Sequence[ResolvedLimit],
        *,
        one_shot: bool = True,
    ) -> Plan:
        """Decide, without changing anything.

        Args:
            graph: The traced model; read only.
            costs: Costs of its sites.
            limits: The budget in absolute terms.
            one_shot: Nothing will be trained afterwards.

        Raises:
            InfeasibleBudget: A limit is below what this method can reach.
        """

    @abstractmethod
    def prepare(self, graph: ModelGraph, plan: Plan, run: Run) -> None:
        """Attach what the plan needs to the model."""

    @abstractmethod
    def finalize(self, graph: ModelGraph, run: Run) -> None:
        """Make the model plain again; afterwards the budget holds."""

    def on_reconstructed(self, graph: ModelGraph, run: Run) -> None:  # noqa: B027 -- a hook
        """After weights were reconstructed from data; what depends on their values follows."""

    def next_phase(self, ended: Sequence[PhaseEnd]) -> Phase | None:
        """What is trained next, after some phases have ended; `None` when training is finished.

        Pure: a resumed run asks again. Most methods train all parameters once.
        """
        return None if ended else Phase()

    def on_phase_start(self, phase: Phase) -> None:  # noqa: B027 -- a hook
        """Before the first step of a phase."""

    def on_phase_end(self, phase: Phase) -> None:  # noqa: B027 -- a hook
        """After the last epoch of a phase, before what it reached is saved."""

    def on_loss(self, loss: Tensor, batch: Any, outputs: Any) -> Tensor:
        """Add penalties to the loss."""
        return loss

    def on_gradients(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: B027 -- a hook
        """After the backward pass, before the optimizer's step."""

    def on_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:  # noqa: B027
        """After the optimizer's step; `step` counts within the phase."""

    def on_epoch(self, epoch: int, optimizer: torch.optim.Optimizer) -> None:  # noqa: B027
        """After an epoch of the phase."""

    def can_be_result(self) -> bool:
        """Whether the model as it stands has the shapes that the result will have."""
        return True

    def needs_shapes(self) -> str:
        """Why channels that are dead in the end must stay; empty if they may go."""
        return ""

    def announced_widths(self, graph: ModelGraph) -> dict[str, Widths]:
        """Widths that the method will give layers whatever it plans, by name of the site.

        Other methods of the same list price weights by them. By default none change.
        """
        return {}

    def claims(self, key: str) -> bool:
        """Whether a limit is for this method in a list, though one before it serves it as well."""
        return False

    def still_saved(self) -> int | float:
        """Energy that the model as it stands will lose in `finalize` without losing weights."""
        return 0

    def report(self) -> dict[str, Any]:
        """What the history tells of the method after an epoch; JSON values."""
        return {}

    def events(self) -> list[dict[str, Any]]:
        """Rows for the history since it was last asked, after every step; JSON values."""
        return []

    def search_record(self) -> SearchRecord | None:
        """Every candidate of a search over architectures, once it is over."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def restore_shapes(self, state: dict[str, Any]) -> None:  # noqa: B027 -- a hook
        """Bring a prepared model to the shapes of `state_dict`, before its weights are loaded."""

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 -- a hook
        """Continue from `state_dict`, after the weights have been loaded."""


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """How a method is registered; the object behind an entry point of `transform.methods`.

    Attributes:
        name: The name users write in `method=`.
        config: Its configuration class; `config()` is the default.
        method: The class that does it.
        serves: Keys of the limits that it can meet.
        source: Paper or origin, for people.
        keeps: Guarantees of earlier methods that it does not break.
        needs: What it cannot do without: `"labels"`.
        gives: What it guarantees of the finished model: `"zeros"`, `"grid"` (weights on levels),
            `"tied"` (weights looked up in banks). A method after it in a list must keep it.
        free: It weighs costs against accuracy by itself, so that it needs no budget.
    """

    GROUP: ClassVar[str] = "transform.methods"

    name: str
    config: type[MethodConfig]
    method: type[Method]
    serves: frozenset[str]
    source: str
    keeps: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()
    free: bool = False

    def build(self, config: MethodConfig | None = None) -> Method:
        """A method with the given or the default configuration."""
        return self.method(config if config is not None else self.config())
