"""Which method serves a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from energy_model.budget import Budget
from energy_model.errors import UnsupportedBudget
from passes.methods.base import MethodSpec
from passes.methods.chain import Chain, chain_spec
from passes.methods.config import MethodConfig
from passes.methods.registry import find_method, methods

Methods = str | MethodConfig | Sequence[str | MethodConfig]
"""One method, by name or configuration, or several in the order in which they work."""

# What removes channels where single weights would not help. In bench/results/*-states (two nets at
# three budgets) it is never more than 1.4 points behind the best method; a search of keep-states by
# free energy is 1.6 and costs a search, every other method is more than two behind somewhere.
STRUCTURED = "l1"
# Where the model is trained, channels go in the first quarter of it: ResNet-20 on 10,000 images of
# CIFAR-10 at 25 % of its MACs has 74.6 % afterwards by "l2", and 70.1 % if they all go before.
GRADUAL: Mapping[str, Any] = {"steps": 8, "until": 0.25}
# Limits under which the weights of one layer cost more than those of another.
PRICED = frozenset({"energy", "sparse_macs"})


@dataclass(frozen=True, slots=True)
class Choice:
    """The method that will be used, and why."""

    spec: MethodSpec
    config: MethodConfig
    why: str


def asked_of(budget: Any, method: Methods) -> Budget:
    """The budget that a user means.

    A method that weighs costs against accuracy by itself needs none; the model is not to grow.

    Raises:
        BudgetError: It cannot be read, or it is `None` and the method needs one.
    """
    if budget is None and isinstance(method, str | MethodConfig) and method != "auto":
        spec, _ = find_method(method)
        if spec.free:
            return Budget(params="100%")
    return Budget.parse(budget)


def choose_method(method: Methods, budget: Budget) -> Choice:
    """Find the method, and check that it serves every limit.

    A list of several becomes one; a list of one is that one.

    Raises:
        ArgumentError: An unknown method, or methods that do not go together.
        UnsupportedBudget: It does not; the limit and the methods that serve it are named.
    """
    if isinstance(method, list | tuple) and len(method) == 1:
        method = method[0]
    spec: MethodSpec
    config: MethodConfig
    if isinstance(method, Chain):
        method = method.stages
    if isinstance(method, list | tuple):
        spec, config = chain_spec(method)
        why = "asked for"
    elif method == "auto":
        keys = {limit.key for limit in budget.limits}
        name = "energy" if PRICED & keys or len(keys) > 1 else "magnitude"
        spec, config = find_method(name)
        why = "every weight has the same price, so ranking by magnitude is optimal"
        if name == "energy":
            alone = keys == {"sparse_macs"}
            why = f"keeps the weights that are worth their {'MACs' if alone else 'energy'}"
        if not keys <= spec.serves:
            spec, config, why = _other_method(budget, keys)
    else:
        spec, config = find_method(method)  # type: ignore[arg-type]
        why = "asked for"
    for limit in budget.limits:
        if limit.key not in spec.serves:
            raise _unserved(limit.key, spec)
    return Choice(spec, config, why)


def automatic() -> dict[str, str]:
    """The method that `"auto"` takes for a limit by itself, by the limit's key, where one does."""
    served = sorted({key for spec in methods().values() for key in spec.serves})
    return {key: choose_method("auto", Budget.parse({key: "50%"})).spec.name for key in served}


def _other_method(budget: Budget, keys: set[str]) -> tuple[MethodSpec, MethodConfig, str]:
    spec, config = find_method(STRUCTURED)
    if keys <= spec.serves:
        if "latency" not in keys:  # every step would be fitted to the clock anew
            config = replace(config, **GRADUAL)
        return spec, config, f"only removing channels lowers {' and '.join(sorted(keys))}"
    for spec in methods().values():
        if keys <= spec.serves and not spec.needs:
            return spec, spec.config(), f"serves {', '.join(sorted(keys))}"
    missing = next(
        (k for k in sorted(keys) if not any(k in s.serves for s in methods().values())), None
    )
    raise UnsupportedBudget(
        f"no available method serves the limit {missing!r}"
        if missing
        else f"no single method serves all of {sorted(keys)}",
        where=str(budget),
        remedy=_served(),
    )


def _unserved(key: str, spec: MethodSpec) -> UnsupportedBudget:
    others = [s.name for s in methods().values() if key in s.serves]
    remedy = f"These do: {', '.join(others)}." if others else f"No method does yet. {_served()}"
    return UnsupportedBudget(
        f"method {spec.name!r} does not serve the limit {key!r}", where="budget", remedy=remedy
    )


def _served() -> str:
    keys = sorted({key for spec in methods().values() for key in spec.serves})
    return f"Limits that are served: {', '.join(keys)}."
