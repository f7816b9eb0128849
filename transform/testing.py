"""Does a method keep the contract? For authors of methods, ours and strangers'."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from energy_model.budget import Budget
from energy_model.errors import InfeasibleBudget, PostconditionError
from energy_model.hardware import load_hardware
from passes.inputs import as_call
from passes.methods.base import MethodSpec
from passes.methods.config import MethodConfig
from passes.methods.registry import find_method
from passes.tracing.trace import trace
from transform.compress import compress
from transform.fingerprint import state_digest
from transform.limits import Subject
from transform.pipeline import resolve
from transform.result import Compressed
from transform.storage import load

_SHARES = ("90%", "60%", "30%")


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


def _models() -> Iterator[tuple[nn.Module, Tensor]]:
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


def check_method(method: str | MethodConfig) -> None:
    """Check a registered method against the contract, on small models.

    Checked: the configuration survives `to_dict` and `from_dict`; `plan` is pure and repeatable;
    every limit that the method says it serves is met, or refused with a tightest value that really
    is reachable; the caller's model and the global random state are untouched; the result is plain,
    finite, deterministic, of the caller's class when no shape changed, and survives saving.

    Args:
        method: A name out of `transform.methods()`, or a configuration object.

    Raises:
        PostconditionError: The clause that is broken, and on which model and limit.
    """
    spec, config = find_method(method)
    _check_config(spec, config)
    for model, example in _models():
        for key in sorted(spec.serves):
            for share in _SHARES:
                where = f"{spec.name}: {key}<={share} on {type(model).__name__}"
                _check_plan(spec, config, model, example, f"{key}<={share}", where)
                _check_run(config, model, example, f"{key}<={share}", where)


def _require(condition: bool, what: str, where: str) -> None:
    if not condition:
        raise PostconditionError(what, where=where, remedy="See transform.testing.check_method.")


def _check_config(spec: MethodSpec, config: MethodConfig) -> None:
    again = spec.config.from_dict(config.to_dict())
    _require(again == config, "the configuration changes when written and read", spec.name)
    method = spec.build(config)
    method.load_state_dict(copy.deepcopy(method.state_dict()))


def _check_plan(
    spec: MethodSpec,
    config: MethodConfig,
    model: nn.Module,
    example: Tensor,
    budget: str,
    where: str,
) -> None:
    own = copy.deepcopy(model)
    graph = trace(own, as_call(own, example))
    subject = Subject(graph, load_hardware("eyeriss"))
    limits = resolve(Budget.parse(budget), subject)
    before = state_digest(own)
    try:
        plans = [spec.build(config).plan(graph, subject.costs, limits) for _ in range(2)]
    except InfeasibleBudget:
        return
    _require(plans[0] == plans[1], "plan() differs between two calls", where)
    _require(state_digest(own) == before, "plan() changes the model", where)
    _require(not _parametrized(own), "plan() parametrizes the model", where)


def _random_state() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()  # noqa: NPY002 -- the global state is what is watched
    return torch.get_rng_state().tolist(), random.getstate(), str(numpy_state)


def _parametrized(model: nn.Module) -> bool:
    return any(parametrize.is_parametrized(module) for module in model.modules())


def _unchanged(model: nn.Module, where: str, action: Callable[[], Compressed]) -> Compressed:
    """Run an action and check that the caller's model and random state do not notice."""
    digest, flags = state_digest(model), [module.training for module in model.modules()]
    state = _random_state()
    try:
        return action()
    finally:
        _require(state_digest(model) == digest, "the caller's model was changed", where)
        modes = [module.training for module in model.modules()]
        _require(modes == flags, "the caller's training flags were changed", where)
        _require(_random_state() == state, "the global random state was used", where)


def _check_run(
    config: MethodConfig, model: nn.Module, example: Tensor, budget: str, where: str
) -> None:
    def run(asked: Any) -> Compressed:
        return _unchanged(
            model,
            where,
            lambda: compress(model, asked, example_inputs=example, method=config, progress="none"),
        )

    try:
        result = run(budget)
    except InfeasibleBudget as error:
        tightest = error.tightest
        _require(tightest > error.asked, "InfeasibleBudget for a value above the tightest", where)
        try:
            result = run({error.limit: int(tightest)})
        except InfeasibleBudget as refused:
            _require(False, f"the tightest value {tightest} is not reachable: {refused}", where)
            raise
    _require(result.certificate.holds, "the certificate does not hold", where)
    _require(not _parametrized(result.model), "the result is still parametrized", where)
    finite = all(bool(torch.isfinite(p).all()) for p in result.model.parameters())
    _require(finite, "the result holds weights that are not finite", where)
    modes = result.model.training == model.training
    _require(modes, "the result is not in the mode of the original", where)
    _check_keys(model, result, where)
    once_more = run(str(result.limits[0].limit))
    same = state_digest(once_more.model) == state_digest(result.model)
    _require(same, "the same seed gives another result", where)
    _check_saved(result, example, where)


def _check_keys(model: nn.Module, result: Compressed, where: str) -> None:
    before, after = model.state_dict(), result.model.state_dict()
    if all(before[k].shape == t.shape for k, t in after.items() if k in before):
        same = type(result.model) is type(model) and list(before) == list(after)
        _require(same, "no shape changed, but the class or the state-dict keys did", where)


def _check_saved(result: Compressed, example: Tensor, where: str) -> None:
    with tempfile.TemporaryDirectory(prefix="transform-check-") as folder:
        result.save(Path(folder) / "saved")
        loaded = load(Path(folder) / "saved", model=result.model)
    a, b = copy.deepcopy(result.model).eval(), loaded.model.eval()
    with torch.no_grad():
        same = torch.equal(a(example), b(example))
    _require(same, "the saved and loaded result computes something else", where)
