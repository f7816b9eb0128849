"""From a request to a result, forward: trace, cost, plan, rewrite, trace anew, certify."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from energy_model.budget import Budget
from energy_model.errors import PostconditionError, PreconditionError
from energy_model.hardware import Hardware
from energy_model.resolved import ResolvedLimit
from passes.graph import Decision, ModelGraph, Site
from passes.inputs import Call
from passes.methods.base import Run
from passes.methods.plan import Plan
from passes.tracing.trace import trace
from transform.certificate import Source, certify
from transform.choice import Choice
from transform.evaluate import accuracy
from transform.fingerprint import state_digest
from transform.limits import Subject, base_value, reached_value
from transform.progress import Progress
from transform.result import Compressed, Costs


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request.

    Attributes:
        model: The caller's model; only copied.
        budget: What was asked.
        call: Example arguments, on the device of the run.
        choice: The method.
        hardware: The accelerator of the energy model.
        run: Generator and device.
        valid: Labelled batches, or `None`.
    """

    model: nn.Module
    budget: Budget
    call: Call
    choice: Choice
    hardware: Hardware
    run: Run
    valid: list[Any] | None


def one_shot(request: Request, show: Progress) -> Compressed:
    """Compress without training; see `transform.compress`."""
    choice, run = request.choice, request.run
    with show.stage("tracing the model"):
        graph = trace(_copied(request.model, run.device), request.call)
    graph.decisions.append(Decision("", f"method {choice.spec.name!r}", choice.why))
    subject = Subject(graph, request.hardware)
    with show.stage("resolving the budget"):
        before, limits = subject.costs, resolve(request.budget, subject)
    with show.stage(f"planning ({choice.spec.name})"):
        method = choice.spec.build(choice.config)
        plan = method.plan(graph, before, limits, one_shot=run.one_shot)
    scores = {"before": _score(request, graph.module, show), "after": None}
    with show.stage("compressing"):
        method.prepare(graph, plan, run)
        method.finalize(graph, run)
        finished = _finished(graph, request)
    with show.stage("certifying"):
        result = _certified(finished, request, limits, plan)
    scores["after"] = _score(request, finished.module, show)
    result.metrics = scores
    result.history = _history(before.total.energy.relaxed, result, choice.spec.name)
    result.costs = Costs(before, result.costs.after)
    return result


def _score(request: Request, model: nn.Module, show: Progress) -> float | None:
    if request.valid is None:
        return None
    with show.stage("evaluating"):
        return accuracy(model, request.valid, request.run.device)


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


def _finished(graph: ModelGraph, request: Request) -> ModelGraph:
    """Trace the finished model anew: nothing is taken from the method's own books."""
    if any(parametrize.is_parametrized(m) for s in graph.compressible for m in _owners(graph, s)):
        raise PostconditionError(
            "the finished model still has parametrized weights",
            where=f"method {request.choice.spec.name!r}",
            remedy="finalize() must bake them.",
        )
    finished = trace(graph.module, request.call)
    finished.decisions[:] = graph.decisions
    return finished


def _owners(graph: ModelGraph, site: Site) -> Sequence[nn.Module]:
    return [graph.module.get_submodule(path) for path, _ in site.owners]


def _certified(
    graph: ModelGraph, request: Request, limits: Sequence[ResolvedLimit], plan: Plan
) -> Compressed:
    choice = request.choice
    subject = Subject(graph, request.hardware)
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


def _history(before: int, result: Compressed, method: str) -> list[dict[str, Any]]:
    after = result.costs.after.total.energy.relaxed
    return [
        {"step": 0, "event": "original", "energy": before},
        {"step": 1, "event": f"{method}: one shot", "energy": after},
    ]
