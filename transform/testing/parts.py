"""What `transform.testing` checks methods with: small models, and how a clause is checked."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from energy_model.errors import InfeasibleBudget, PostconditionError
from transform.fingerprint import state_digest
from transform.result import Compressed


class _TiedNet(nn.Module):
    """Two layers that share one weight, and a norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.norm = nn.BatchNorm1d(12)
        self.second = nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Input `(N, 12)`, output `(N, 5)`."""
        hidden = torch.relu(self.norm(self.first(x)))
        result: Tensor = self.head(torch.relu(self.second(hidden)))
        return result


def small_models() -> Iterator[tuple[nn.Module, Tensor]]:
    """Classifiers and example inputs `(N, ...)`; the same weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=2),
            nn.Flatten(),
            nn.Linear(8 * 6 * 6, 10),
        )
        yield conv.train(), torch.randn(3, 2, 8, 8)
        yield _TiedNet().eval(), torch.randn(4, 12)


def labelled(model: nn.Module, example: Tensor) -> list[tuple[Tensor, Tensor]]:
    """One batch of the example, with a class for each sample; the model is not changed."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        classes = copy.deepcopy(model)(example).shape[1]
    return [(example, torch.arange(len(example)) % classes)]


def require(condition: bool, what: str, where: str) -> None:
    """Raise `PostconditionError` unless a clause holds."""
    if not condition:
        raise PostconditionError(what, where=where, remedy="See transform.testing.check_method.")


def _random_state() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()  # noqa: NPY002 -- the global state is what is watched
    return torch.get_rng_state().tolist(), random.getstate(), str(numpy_state)


def unchanged(model: nn.Module, where: str, action: Callable[[], Compressed]) -> Compressed:
    """Run an action and check that the caller's model and random state do not notice."""
    digest, flags = state_digest(model), [module.training for module in model.modules()]
    state = _random_state()
    try:
        return action()
    finally:
        require(state_digest(model) == digest, "the caller's model was changed", where)
        modes = [module.training for module in model.modules()]
        require(modes == flags, "the caller's training flags were changed", where)
        require(_random_state() == state, "the global random state was used", where)


def feasible(run: Callable[[Any], Compressed], budget: str, where: str) -> Compressed:
    """The result within the budget or, where that is refused, within the tightest value."""
    try:
        return run(budget)
    except InfeasibleBudget as error:
        tightest = error.tightest
        require(tightest > error.asked, "InfeasibleBudget for a value above the tightest", where)
        try:
            return run({error.limit: int(tightest)})
        except InfeasibleBudget as refused:
            require(False, f"the tightest value {tightest} is not reachable: {refused}", where)
            raise
