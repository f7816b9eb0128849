"""How architectures are searched."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from passes.methods.config import MethodConfig
from passes.methods.embedding.ladder import Ladder

SURROGATES = ("embedding", "features", "random", "evolution")
POLICIES = ("free", "stage", "width")
IMPORTANCES = ("norm", "leading")
DISTILLATIONS = ("kl", "logit_mse")
OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class EmbeddingSearch(MethodConfig):
    """Search a smaller architecture by Bayesian optimisation in a learned embedding space.

    After S. Cao, X. Wang, K. Kitani, "Learnable Embedding Space for Efficient Neural Architecture
    Compression", ICLR 2019: students are made of the model by removing layers, narrowing groups of
    channels and adding skips; a Gaussian process on learned embeddings of them proposes the next
    ones; each is distilled for a few epochs. The reward is `C (2 - C) A`, with C the share of the
    cost that is saved and A the accuracy relative to the model's. What differs is said where it is
    done; above all, budgets are hard limits that no candidate breaks, students start as functions
    close to the model's, and not all of them are trained equally long.

    Attributes:
        steps: Times that candidates are proposed, evaluated and learnt from.
        batch: Candidates of a step.
        keep: How many of the best are trained fully after the search; the best of them is the
            result. Not more than there are candidates.
        fidelity: Epochs after which the rungs of the search end, ascending; one number trains all
            candidates equally long.
        eta: One in so many candidates of a step goes on to the next rung, rounded up.
        probes: Candidates that are trained to the last rung before the others may be halved, and by
            whose ranks is decided whether they are; 0 halves from the start.
        surrogate: What proposes candidates. `"embedding"`: Gaussian processes on learned
            embeddings; `"features"`: on features made by hand; `"random"`: chance; `"evolution"`:
            mutations of the best by tournament. The last three are the baselines.
        metric: The cost that C is counted in, or a tuple of several, of whose ratios the geometric
            mean counts. Any deterministic cost: `"params"`, `"macs"`, `"energy"`, ...
        composite: Model A alone, for C is known before a candidate is trained; if false, the
            reward.
        policy: Which channel groups have one width. `"free"`: each its own; `"stage"`: one for
            those of equal width and spatial size; `"width"`: one for those of equal width, as in
            the paper.
        kernels: Encoders of the ensemble. Each learns from a random part of the record.
        pool: Candidates that the acquisition chooses from, for each proposal.
        encoder: Folder in which an earlier search saved its encoders, such as that of its result,
            from which these start; `None` starts anew.
        importance: What decides which channels stay: the largest weights (`"norm"`), or their order
            (`"leading"`), as in the paper.
        distill: How candidates learn from the model: `"kl"`, the divergence of softened outputs
            times the square of the temperature; `"logit_mse"`, the mean squared difference of
            logits, as in the paper; `None`: from the labels alone.
        distill_weight: Share of distillation in the loss, from 0 to 1; cross entropy has the rest.
            At 1, as in the paper, the training data needs no labels.
        temperature: Softening of `"kl"`.
        optimizer: Of the search.
        lr: Its learning rate, constant: so a candidate may go on from a rung as if it had never
            stopped, wherever that rung ends.
        weight_decay: Its L2 (decoupled for `"adamw"`).
        bn_batches: Training batches from which the statistics of batch norms are estimated anew
            before a candidate is scored; 0 leaves them.
        workers: Processes that train candidates. Above 1 they are started with Ray (the extra
            `ray`); the results are the same.
        address: Of a Ray cluster to run the workers on; `None` is this machine.
    """

    steps: int = 20
    batch: int = 8
    keep: int = 4
    fidelity: tuple[int, ...] = (1, 3, 10)
    eta: int = 3
    probes: int = 16
    surrogate: Literal["embedding", "features", "random", "evolution"] = "embedding"
    metric: str | tuple[str, ...] = "params"
    composite: bool = True
    policy: Literal["free", "stage", "width"] = "free"
    kernels: int = 8
    pool: int = 1000
    encoder: str | None = None
    importance: Literal["norm", "leading"] = "norm"
    distill: Literal["kl", "logit_mse"] | None = "kl"
    distill_weight: float = 0.5
    temperature: float = 4.0
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 5e-4
    bn_batches: int = 16
    workers: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        for name in ("fidelity", "metric"):  # JSON has lists only
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.metric, tuple) and len(self.metric) == 1:
            object.__setattr__(self, "metric", self.metric[0])
        if isinstance(self.encoder, os.PathLike):
            object.__setattr__(self, "encoder", os.fspath(self.encoder))
        if isinstance(self.fidelity, int) and not isinstance(self.fidelity, bool):
            object.__setattr__(self, "fidelity", (self.fidelity,))
        for name in ("steps", "batch", "keep", "kernels", "pool", "workers"):
            self._require(name, _whole(getattr(self, name), 1), "a whole number from 1")
        for name in ("probes", "bn_batches"):
            self._require(name, _whole(getattr(self, name), 0), "a whole number from 0")
        self._require("keep", self.keep <= self.steps * self.batch, "at most steps * batch")
        self._require("eta", _whole(self.eta, 2), "a whole number from 2")
        self._require("fidelity", _ascending(self.fidelity), "epochs from 0, ascending: (1, 3, 10)")
        self._require("metric", _keys(self.metric), "the name of a cost, or several different ones")
        for name, known in _CHOICES.items():
            self._require(name, getattr(self, name) in known, f"one of {known}")
        self._require("composite", isinstance(self.composite, bool), "true or false")
        share = _number(self.distill_weight, 0, 1)
        self._require("distill_weight", share, "a share from 0 to 1")
        self._require("temperature", _number(self.temperature, 1e-6), "a number above 0")
        for name in ("lr", "weight_decay"):
            self._require(name, _number(getattr(self, name), 0), "a number from 0")
        for name in ("encoder", "address"):
            value = getattr(self, name)
            named = value is None or (isinstance(value, str) and value != "")
            self._require(name, named, "None, or a text that is not empty")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The costs that count, also where there is one."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric

    @property
    def ladder(self) -> Ladder:
        """The rungs."""
        return Ladder(self.fidelity, self.eta, self.probes)


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "surrogate": SURROGATES,
    "policy": POLICIES,
    "importance": IMPORTANCES,
    "distill": (*DISTILLATIONS, None),
    "optimizer": OPTIMIZERS,
}


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any, low: float, high: float = 1e30) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _ascending(value: Any) -> bool:
    whole = isinstance(value, tuple) and value and all(_whole(epochs, 0) for epochs in value)
    return bool(whole) and all(a < b for a, b in pairwise(value))


def _keys(value: Any) -> bool:
    keys = value if isinstance(value, tuple) else (value,)
    named = all(isinstance(key, str) and key for key in keys)
    return bool(keys) and named and len(set(keys)) == len(keys)
