"""Small nets for the tests of sparse training, and what its engine did to them."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import transform
from passes.dynamic.engine import RewireEngine
from passes.dynamic.rule import RULES
from passes.methods.sparse_training import SPEC, SparseTraining

IMAGES = torch.randn(48, 1, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = (IMAGES.sum((1, 2, 3)) > 0).long()
BATCHES = [(IMAGES[i : i + 8], LABELS[i : i + 8]) for i in range(0, 48, 8)]
ROWS = torch.randn(48, 12, generator=torch.Generator().manual_seed(2))
ROW_BATCHES = [(ROWS[i : i + 8], LABELS[i : i + 8]) for i in range(0, 48, 8)]


class Stop(BaseException):
    """Ends a run from outside."""


class Stopped:
    """Batches that end the run after so many."""

    def __init__(self, after: int, batches=BATCHES) -> None:
        self.left, self.batches = after, batches

    def __iter__(self):
        for batch in self.batches:
            if self.left == 0:
                raise Stop
            self.left -= 1
            yield batch

    def __len__(self) -> int:
        return len(self.batches)


def conv_net(seed: int = 0) -> nn.Sequential:
    """Sites 0, 2 and 5 of 72, 576 and 64 weights; inputs `(N, 1, 6, 6)`."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)
    )


CONV_TOTAL = 72 + 576 + 64


def row_net(seed: int = 0) -> nn.Sequential:
    """Sites 0, 2 and 4 of 240, 320 and 32 weights; inputs `(N, 12)`."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 2)
    )


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Weights with two dimensions or more, by the name of the site."""
    found = {n: p.detach() for n, p in model.named_parameters() if p.dim() > 1}
    return {name.removesuffix(".weight"): value for name, value in found.items()}


def nonzeros(model: nn.Module) -> dict[str, int]:
    return {name: int(torch.count_nonzero(w)) for name, w in weights_of(model).items()}


def same(one: Iterable[Tensor], other: Iterable[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@dataclass
class Moment:
    """One event: masks `(cells,)` before and after it by site, and its row of the history.

    `values` are the weights before it, `gradients` the dense ones if its rule asks for them.
    """

    step: int
    values: dict[str, Tensor]
    gradients: dict[str, Tensor]
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    counts: list[int]
    row: dict[str, Any]

    @property
    def dropped(self) -> dict[str, Tensor]:
        return {name: mask & ~self.after[name] for name, mask in self.before.items()}

    @property
    def grown(self) -> dict[str, Tensor]:
        return {name: mask & ~self.before[name] for name, mask in self.after.items()}


@dataclass
class Witness:
    """What the engines of some runs did."""

    engines: list[RewireEngine] = field(default_factory=list)
    first: list[dict[str, Tensor]] = field(default_factory=list)
    values: list[dict[str, Tensor]] = field(default_factory=list)
    events: list[Moment] = field(default_factory=list)
    last: list[dict[str, Tensor]] = field(default_factory=list)
    stored: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def engine(self) -> RewireEngine:
        return self.engines[-1]

    @property
    def steps(self) -> list[int]:
        return [moment.step for moment in self.events]

    def masks(self) -> list[Tensor]:
        """After every event, those of all sites, flat."""
        return [torch.cat(list(moment.after.values())) for moment in self.events]

    def active(self) -> list[int]:
        """Active parameters after every event."""
        return [sum(moment.counts) for moment in self.events]

    def moved(self) -> list[int]:
        """Cells that every event dropped."""
        return [sum(moment.row["dropped"].values()) for moment in self.events]


def masks_in(engine: RewireEngine) -> dict[str, Tensor]:
    return {m.site.name: engine.mask(m) for m in engine.members}


def values_in(engine: RewireEngine) -> dict[str, Tensor]:
    return {m.site.name: engine.graph.weight(m.site).clone() for m in engine.members}


# As they are: a second witness in a test takes the place of the first.
_ATTACH, _REWIRE, _FINALIZE = RewireEngine.attach, RewireEngine.rewire, SPEC.method.finalize


def watched(monkeypatch: pytest.MonkeyPatch) -> Witness:
    """Look over the shoulder of every engine of the test."""
    seen = Witness()

    def attached(engine, masks):
        _ATTACH(engine, masks)
        seen.engines.append(engine)
        seen.first.append(masks_in(engine))
        seen.values.append(values_in(engine))

    def rewired(engine, step, due, optimizer):
        gradients = {
            m.site.name: sum(mask.dense for mask in engine.watched(m))
            for m in engine.members
            if all(mask.dense is not None for mask in engine.watched(m))
        }
        values, before = values_in(engine), masks_in(engine)
        row = _REWIRE(engine, step, due, optimizer)
        after, counts = masks_in(engine), engine.counts()
        seen.events.append(Moment(step, values, gradients, before, after, counts, row))
        return row

    def finalized(method, graph, run):
        if not run.one_shot:
            seen.last.append(masks_in(seen.engine))
            seen.stored.append(values_in(seen.engine))
        _FINALIZE(method, graph, run)

    monkeypatch.setattr(RewireEngine, "attach", attached)
    monkeypatch.setattr(RewireEngine, "rewire", rewired)
    monkeypatch.setattr(SPEC.method, "finalize", finalized)
    return seen


def trained(
    budget="nonzeros<=20%",
    *,
    model=None,
    data=None,
    epochs=4,
    layers=None,
    method=None,
    train=None,
    seed=0,
    out=None,
    keep_shapes=True,
    **options,
):
    """A short training; rules with a schedule rewire every second step unless told otherwise."""
    rule = RULES.get(options.get("rule", "dsr_plus"))
    often = {"every": 2} if rule is not None and rule.schedule else {}
    config = {"epochs": epochs, "lr": 0.05, "select": "last"} | (train or {})
    gc.freeze()  # a run ends with a full collection, which would walk all that tests have imported
    try:
        return transform.compress(
            conv_net() if model is None else model,
            budget,
            data=BATCHES if data is None else data,
            method=SparseTraining(**often | options) if method is None else method,
            train=transform.TrainConfig(**config),
            keep_shapes=keep_shapes,
            layers=layers,
            out=out,
            seed=seed,
            progress="none",
        )
    finally:
        gc.unfreeze()
