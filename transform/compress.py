"""The verb: bring a model within a budget, and prove it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from energy_model.budget import Budget
from energy_model.errors import (
    PostconditionError,
    PreconditionError,
    UnsupportedBudget,
)
from energy_model.hardware import Hardware, load_hardware
from energy_model.resolved import ResolvedLimit
from passes.graph import Decision, ModelGraph
from passes.inputs import Call
from passes.methods.base import MethodSpec, Run
from passes.methods.config import MethodConfig
from passes.methods.plan import Plan
from passes.methods.registry import find_method, methods
from passes.tracing.trace import trace
from transform import arguments
from transform.certificate import Source, certify
from transform.evaluate import accuracy
from transform.fingerprint import state_digest
from transform.limits import Subject, base_value, reached_value
from transform.progress import Mode, Progress
from transform.result import Compressed, Costs


def compress(
    model: nn.Module,
    budget: str | Mapping[str, Any] | Budget,
    data: Iterable[Any] | None = None,
    *,
    valid: Iterable[Any] | None = None,
    example_inputs: Any = None,
    method: str | MethodConfig = "auto",
    layers: None = None,
    hardware: str | Path | Mapping[str, Any] | Hardware = "eyeriss",
    target: str = "onnxruntime-cpu",
    teacher: str = "original",
    train: None = None,
    loss: Callable[..., Tensor] | None = None,
    metric: Callable[..., float] | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: Mode | bool = "auto",
) -> Compressed:
    """Compress a model until it fits a budget.

    The caller's model, its modes and the global random state are left as they were. The budget is
    met exactly or an error is raised; it is never silently changed.

    Args:
        model: Any PyTorch model.
        budget: `"energy<=25%"`, `"energy<=25%, nonzeros<=20k"`, `{"energy": 0.25}` or a `Budget`.
            Shares are relative to the original dense model; integers and strings with units are
            absolute.
        data: Batches: a tensor, `(inputs, targets)`, several inputs, or a dict with `inputs`. This
            version takes only the example inputs from it: it compresses in one shot.
        valid: Labelled batches on which the accuracy before and after is measured.
        example_inputs: What the model is called with; the first batch of `data` by default.
        method: A name out of `transform.methods()`, a configuration object, or `"auto"`.
        layers: Reserved.
        hardware: Profile of the energy model: a name, a YAML file or a `Hardware`.
        target: Where latency is measured.
        teacher: Reserved.
        train: Reserved.
        loss: Reserved.
        metric: Reserved.
        out: Folder for the saved result, the ONNX file and its certificate; it must be free.
        resume: Reserved.
        device: Where to work; `None` means where the model is.
        seed: Seed of all randomness.
        progress: `"auto"`, `"bar"`, `"log"` or `"none"`.

    Returns:
        The result: model, certificate, decisions, plan, costs, metrics.

    Raises:
        InfeasibleBudget: The method cannot go as low; the error holds the tightest value.
        UnsupportedBudget: No method serves a limit.
        ArgumentError: An argument is malformed or not supported yet.
        TraceError: The model fails on its example inputs.
        PreconditionError: The model has NaN weights or no weighted layer.
    """
    arguments.require_defaults(
        layers=layers, teacher=teacher, train=train, loss=loss, metric=metric, resume=resume
    )
    arguments.require_model(model)
    arguments.require_target(target)
    folder = arguments.require_free(out)
    profile, asked = load_hardware(hardware), Budget.parse(budget)
    choice = choose_method(method, asked)
    call, data = arguments.example_call(model, example_inputs, data)
    place = arguments.find_device(model, device)
    run = Run(torch.Generator().manual_seed(arguments.require_seed(seed)), place)
    show = Progress(progress)

    with show.stage("tracing the model"):
        graph = trace(_copied(model, place), call.to(place))
    graph.decisions.append(Decision("", f"method {choice.spec.name!r}", choice.why))
    subject = Subject(graph, profile)
    before = subject.costs
    with show.stage("resolving the budget"):
        limits = resolve(asked, subject)
    with show.stage(f"planning ({choice.spec.name})"):
        worker = choice.spec.build(choice.config)
        plan = worker.plan(graph, before, limits, one_shot=run.one_shot)
    scores: dict[str, float | None] = {"before": None, "after": None}
    batches = list(valid) if valid is not None else None
    if batches is not None:
        with show.stage("evaluating the original"):
            scores["before"] = accuracy(graph.module, batches, place)
    with show.stage("compressing"):
        worker.prepare(graph, plan, run)
        worker.finalize(graph, run)
    finished = _finished(graph, call.to(place), choice.spec)
    with show.stage("certifying"):
        result = _certified(finished, profile, limits, choice, plan)
    if batches is not None:
        with show.stage("evaluating the result"):
            scores["after"] = accuracy(finished.module, batches, place)
    after = result.costs.after
    result.costs = Costs(before, after)
    result.metrics = scores
    result.history = _history(before.total.energy.relaxed, after.total.energy.relaxed, choice.spec)
    if folder is not None:
        with show.stage("exporting and saving"):
            result.save(folder, onnx=True)
    return result


@dataclass(frozen=True, slots=True)
class Choice:
    """The method that will be used, and why."""

    spec: MethodSpec
    config: MethodConfig
    why: str


def choose_method(method: str | MethodConfig, budget: Budget) -> Choice:
    """Find the method, and check that it serves every limit.

    Raises:
        UnsupportedBudget: It does not; the limit and the methods that serve it are named.
    """
    if method == "auto":
        keys = {limit.key for limit in budget.limits}
        name = "energy" if "energy" in keys or len(keys) > 1 else "magnitude"
        spec, config = find_method(name)
        why = (
            "keeps the weights that are worth their energy"
            if name == "energy"
            else "every weight has the same price, so ranking by magnitude is optimal"
        )
        if not keys <= spec.serves:
            spec, config, why = _other_method(budget, keys)
    else:
        spec, config = find_method(method)
        why = "asked for"
    for limit in budget.limits:
        if limit.key not in spec.serves:
            raise _unserved(limit.key, spec)
    return Choice(spec, config, why)


def _other_method(budget: Budget, keys: set[str]) -> tuple[MethodSpec, MethodConfig, str]:
    for spec in methods().values():
        if keys <= spec.serves:
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


def resolve(budget: Budget, subject: Subject) -> tuple[ResolvedLimit, ...]:
    """The budget in absolute terms, relative to the original dense model."""
    resolved = []
    for limit in budget.limits:
        base = base_value(limit.key, subject).number
        resolved.append(ResolvedLimit(limit, base, limit.resolve(base, subject.hardware)))
    return tuple(resolved)


def _copied(model: nn.Module, device: torch.device) -> nn.Module:
    try:
        return copy.deepcopy(model).to(device)
    except RuntimeError as error:
        raise PreconditionError(
            f"the model cannot be copied: {str(error).splitlines()[0]}",
            where=type(model).__name__,
            remedy="Detach tensors that were stored on modules during training.",
        ) from error


def _finished(graph: ModelGraph, call: Call, spec: MethodSpec) -> ModelGraph:
    """Trace the finished model anew: nothing is taken from the method's own books."""
    if any(parametrize.is_parametrized(m) for s in graph.compressible for m in _owners(graph, s)):
        raise PostconditionError(
            "the finished model still has parametrized weights",
            where=f"method {spec.name!r}",
            remedy="finalize() must bake them.",
        )
    finished = trace(graph.module, call)
    finished.decisions[:] = graph.decisions
    return finished


def _owners(graph: ModelGraph, site: Any) -> Sequence[nn.Module]:
    return [graph.module.get_submodule(path) for path, _ in site.owners]


def _certified(
    graph: ModelGraph,
    hardware: Hardware,
    limits: Sequence[ResolvedLimit],
    choice: Choice,
    plan: Plan,
) -> Compressed:
    subject = Subject(graph, hardware)
    values = {limit.key: reached_value(limit.key, subject) for limit in limits}
    source = Source("model", state_digest(graph.module))
    certificate = certify(limits, values, source, subject.costs)
    for row in certificate.rows:
        if not row.holds:
            raise PostconditionError(
                f"{row.asked} allows {row.maximum:,}, the finished model has {row.reached:,}",
                where=f"method {choice.spec.name!r}",
                remedy="This is an error of the method; please report it with the model.",
            )
    return Compressed(
        model=graph.module,
        certificate=certificate,
        decisions=tuple(graph.decisions),
        plan=plan,
        costs=Costs(subject.costs, subject.costs),
        method=choice.spec.name,
        config=choice.config.to_dict(),
        limits=tuple(limits),
        graph=graph,
    )


def _history(before: int, after: int, spec: MethodSpec) -> list[dict[str, Any]]:
    return [
        {"step": 0, "event": "original", "energy": before},
        {"step": 1, "event": f"{spec.name}: one shot", "energy": after},
    ]
