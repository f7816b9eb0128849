"""How keep-states are searched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from passes.methods.config import MethodConfig

Energy = str | Callable[[Any, Any], Any]

ENERGIES = ("margin", "margin_prob", "free_energy_nll", "distill", "ising", "combined", "random")
SEARCHES = ("de", "de+ls", "ratio-de")
BACKENDS = ("auto", "measured", "loop", "fold", "vmap", "compact")


@dataclass(frozen=True)
class Ising(MethodConfig):
    """Search the channels that stay by evolving keep-states towards a low energy.

    The formulas are those of H. Salehinejad and S. Valaee: the Ising energy of "Pruning of
    Convolutional Neural Networks Using Ising Energy Model" (ICASSP 2021), the margin energy of
    "EDropout: Energy-Based Dropout and Pruning of Deep Neural Networks" (IEEE TNNLS 2022), and
    binary differential evolution. What differs is said where it is done; above all, the budget is a
    constraint that every state meets.

    Attributes:
        states: Keep-states in the population, at least 4.
        energy: What is lowered. `"margin"`: minus the mean margin of the true class in logits;
            `"margin_prob"`: in probabilities; `"free_energy_nll"`: the free energy of all classes
            minus that of the true one; `"distill"`: the divergence from the whole network with the
            weights of the moment, without labels; `"ising"`: redundancy of kernels and activity of
            feature maps, without running candidates; `"combined"`: margin and Ising; `"random"`: a
            number by chance, the same for the same state, the control that shows what an energy
            contributes; or a function of (outputs, targets) that returns one number, lower is
            better.
        temperature: Divides the logits of `"margin_prob"`, `"free_energy_nll"` and `"distill"`.
        ising_weight: Weight of the Ising part of `"combined"`, in standard deviations over the
            states that are compared first.
        inter: Weight of the couplings between groups, against 1 within: at 1, as in the paper,
            whole groups are preferred to others.
        search: `"ratio-de"` evolves the share that each group keeps, and importance decides
            which units these are; `"de"` evolves the bits, as in the papers;
            `"de+ls"` also swaps those that are expected to gain most, to first order.
        init_keep: `"budget"` starts with states near the budget, and with the whole network while
            the budget falls; a number is the share of the units that each of the first states
            keeps, before it is brought within the budget.
        search_share: Share of the training during which is searched; 0 searches before training, on
            the weights as they are, as without training.
        generations: Generations of a search on weights as they are.
        every: Optimizer steps from one generation to the next.
        patience: Generations after which the search ends if the best state stays the same, under
            the budget itself.
        anneal: Let the budget fall from the whole network to its limit during the first 70 % of the
            search. In training, channels that repeat each other are told apart by the Ising energy
            without it only: such a search begins with a state of low energy.
        mutation: F of the differential evolution: what is made of the difference of two other
            states; of bits the chance that one is flipped where they differ.
        crossover: C: chance that a share, or a bit, comes from the mutant.
        noise: Chance that a bit of a child is flipped, where bits evolve; `None` is one in each
            group on average.
        importance: What decides which channels a state loses when it is repaired: magnitudes
            (`"l1"`, `"l2"`), or the first-order change of the loss (`"taylor"`).
        repair_temperature: Of the draw by which a state is repaired; 0 always takes the least
            important channels.
        local_flips: Swaps that `"de+ls"` adds to a generation at most.
        score_share: Share of each batch that candidates are compared on; at least 16 samples, as
            far as a batch has them.
        score_samples: Samples that candidates are compared on where the weights do not change.
        norms: What batch norms do for a candidate: `"batch"` uses the statistics of the samples, as
            the finished model has statistics of its own; `"running"` those of the whole network.
        backend: How candidates are run: one by one (`"loop"`), as one batch (`"fold"`), by
            `torch.vmap` (`"vmap"`), really cut (`"compact"`), or as is found to be fastest in the
            first generation (`"measured"`). `"auto"` measures on accelerators; on a CPU it takes
            `"compact"` if that computes the same, so that a seed gives one result.
        refresh: Optimizer steps after which importances and Ising couplings follow the weights; a
            tenth of the search at most.
        bn_batches: Batches for the statistics of batch norms when the search ends; 0 leaves them.
        max_removed: Share of its units that a group loses at most.
        channel_multiple: Channel counts are multiples of this; `None` takes the hardware's.
    """

    states: int = 8
    energy: Energy = "margin"
    temperature: float = 1.0
    ising_weight: float = 1.0
    inter: float = 0.1
    search: Literal["de", "de+ls", "ratio-de"] = "ratio-de"
    init_keep: float | Literal["budget"] = "budget"
    search_share: float = 0.25
    generations: int = 200
    every: int = 1
    patience: int = 100
    anneal: bool = True
    mutation: float = 0.9
    crossover: float = 0.5
    noise: float | None = None
    importance: Literal["l1", "l2", "taylor"] = "l2"
    repair_temperature: float = 0.5
    local_flips: int = 4
    score_share: float = 0.125
    score_samples: int = 128
    norms: Literal["running", "batch"] = "batch"
    backend: Literal["auto", "measured", "loop", "fold", "vmap", "compact"] = "auto"
    refresh: int = 100
    bn_batches: int = 16
    max_removed: float = 0.95
    channel_multiple: int | None = None

    def __post_init__(self) -> None:
        named = self.energy in ENERGIES if isinstance(self.energy, str) else callable(self.energy)
        self._require("energy", named, f"one of {ENERGIES}, or a function of (outputs, targets)")
        self._require("search", self.search in SEARCHES, f"one of {SEARCHES}")
        self._require("norms", self.norms in ("running", "batch"), "'running' or 'batch'")
        self._require("backend", self.backend in BACKENDS, f"one of {BACKENDS}")
        whole_from = "a whole number from "
        self._require("states", _whole(self.states, 4), whole_from + "4")
        for name in ("generations", "every", "patience", "local_flips", "score_samples", "refresh"):
            least = 2 if name == "score_samples" else 1
            self._require(name, _whole(getattr(self, name), least), f"{whole_from}{least}")
        self._require("bn_batches", _whole(self.bn_batches, 0), whole_from + "0")
        for name in ("mutation", "crossover", "search_share", "max_removed"):
            self._require(name, _share(getattr(self, name)), "a share from 0 to 1")
        for name in ("temperature", "score_share"):
            above = _number(getattr(self, name)) and getattr(self, name) > 0
            self._require(name, above, "a number above 0")
        self._require("score_share", self.score_share <= 1, "a share up to 1")
        known = ("l1", "l2", "taylor")
        self._require("importance", self.importance in known, f"one of {known}")
        for name in ("repair_temperature", "ising_weight", "inter"):
            fits = _number(getattr(self, name)) and getattr(self, name) >= 0
            self._require(name, fits, "a number from 0")
        self._require("anneal", isinstance(self.anneal, bool), "true or false")
        self._require("noise", self.noise is None or _share(self.noise), "None, or a share")
        keep = self.init_keep == "budget" or (_share(self.init_keep) and self.init_keep > 0)
        self._require("init_keep", keep, "'budget', or a share above 0")
        multiple = self.channel_multiple is None or _whole(self.channel_multiple, 1)
        self._require("channel_multiple", multiple, f"None, or {whole_from}1")

    @property
    def task(self) -> Energy:
        """The energy of the outputs of candidates, where these are run."""
        return "margin" if self.energy in ("ising", "combined", "random") else self.energy

    @property
    def needs_labels(self) -> bool:
        """Whether the energy compares outputs with targets."""
        return self.energy not in ("distill", "ising", "random")

    @property
    def compares_classes(self) -> bool:
        """Whether samples of one class alone would tell nothing."""
        return isinstance(self.energy, str) and self.needs_labels

    @property
    def runs_candidates(self) -> bool:
        """Whether the energy is made of the outputs of candidates."""
        return self.energy not in ("ising", "random")

    @property
    def couples(self) -> bool:
        """Whether the Ising energy plays a part."""
        return self.energy in ("ising", "combined")

    @property
    def energy_name(self) -> str:
        """The energy in a word; of a function, where it is defined."""
        if isinstance(self.energy, str):
            return self.energy
        kind = self.energy if hasattr(self.energy, "__qualname__") else type(self.energy)
        return f"{kind.__module__}.{kind.__qualname__}"

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object; a function is written by its name, and cannot be read back."""
        return super().to_dict() | {"energy": self.energy_name}


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _share(value: object) -> bool:
    return _number(value) and 0 <= value <= 1  # type: ignore[operator]
