"""From a request to a result, forward: trace, cost, plan, rewrite, trace anew, certify."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from energy_model.budget import Budget, Limit
from energy_model.cost import CostTable
from energy_model.errors import PostconditionError, PreconditionError, UnsupportedBudget
from energy_model.resolved import ResolvedLimit
from energy_model.timing import Timing
from passes.graph import Decision, LayerRule, ModelGraph, Site
from passes.isolation import copied
from passes.methods.base import Method, Run
from passes.methods.plan import Plan
from passes.quantize.activations import ActivationQuantizer
from passes.reconstruct.layers import reconstruct
from passes.selectors import select_layers
from passes.structure.costs import LATENCY
from passes.tracing.trace import trace
from transform.certificate import REMEASURE, Source, certify
from transform.evaluate import evaluate
from transform.fingerprint import state_digest
from transform.finished import traced_anew, unspent, without_dead_structure
from transform.limits import COUNTED, Subject, base_value, reached_value
from transform.progress import Progress
from transform.request import Request
from transform.result import Compressed, Costs, smaller_layers
from transform.run_setting import run_setting, stopwatch
from transform.sizes import Sizes, count_sizes
from transform.stopwatch import other_machine
from transform.training.candidates import trainer_of
from transform.training.fit import fit


def run(request: Request, show: Progress, notes: Sequence[Decision] = ()) -> Compressed:
    """Compress, with or without training; see `transform.compress`."""
    choice, training = request.choice, request.training
    with show.stage("tracing the model"):
        graph = trace(copied(request.model, request.device), request.call)
    _require_floats(graph)
    sites, graph.rules = graph.by_name, select_layers(graph, request.layers)
    graph.decisions += [Decision(name, "rule", _told(rule)) for name, rule in graph.rules.items()]
    graph.decisions += [Decision("", f"method {choice.spec.name!r}", choice.why), *notes]
    watch = stopwatch(request)
    subject = Subject(graph, request.hardware, timed=partial(watch.timing, "original"))
    with show.stage("resolving the budget"):
        before, limits = subject.costs, resolve(request.budget, subject, request.origin)
        bases = _bases(subject, limits, request.origin)
    setting = run_setting(request, limits, before, watch, trainer_of(request, show))
    with show.stage(f"planning ({choice.spec.name})"):
        method = choice.spec.build(choice.config)
        method.observe(graph, setting)
        plan = method.plan(graph, before, limits, one_shot=setting.one_shot)
    scores = {"before": _score_before(request, graph.module, show), "after": None}
    with show.stage("compressing"):
        method.prepare(graph, plan, setting)
        if training:
            _reconstruct(request, graph, method, setting, show)
            history = _trained(request, graph, method, limits, show)
            method.finalize(graph, setting)
        else:
            history = []
            method.finalize(graph, setting)
            _reconstruct(request, graph, method, setting, show)
        if method.needs_shapes():
            graph.decisions.append(Decision("", "dead channels stay", method.needs_shapes()))
        elif not request.keep_shapes:
            graph.decisions += without_dead_structure(graph)
        finished = _finished(graph, request, sites)
    with show.stage("certifying"):
        result = _certified(finished, request, limits, plan, before, bases)
    scores["after"] = _score(request, finished.module, show)
    if request.origin is not None or any(limit.key == LATENCY for limit in limits):
        result.timing = _timing_of_original(subject, request.origin)
    result.metrics, result.search = scores, method.search_record()
    if result.search is not None:  # what the search chose was trained in it
        history = [*history, *map(dict, result.search.best.history)]
    result.history = _history(before.total.energy.relaxed, result, history)
    return result


def _require_floats(graph: ModelGraph) -> None:
    """Raise for a model whose activations are rounded: nothing can be compressed beneath that."""
    if any(isinstance(part, ActivationQuantizer) for part in graph.module.modules()):
        raise PreconditionError(
            "the activations of the model are quantized already",
            where=type(graph.module).__name__,
            remedy="Compress the original by all methods at once, those that prune first: "
            "method=['magnitude', Quantize(weights=8, activations=8)].",
        )


def _reconstruct(
    request: Request, graph: ModelGraph, method: Method, setting: Run, show: Progress
) -> None:
    """Fit what the method has left of every layer to the outputs of the original's layer."""
    if request.reconstruct is None or request.batches is None:
        return
    with show.stage("reconstructing layers"):
        original = copied(request.model, request.device)
        graph.decisions += reconstruct(original, graph, request.batches, request.reconstruct)
        method.on_reconstructed(graph, setting)


def _trained(
    request: Request,
    graph: ModelGraph,
    method: Method,
    limits: Sequence[ResolvedLimit],
    show: Progress,
) -> list[dict[str, Any]]:
    assert request.training is not None

    def within() -> bool:
        if not method.can_be_result():
            return False
        # Files and measurements are made once, at the end; what can be counted is counted here.
        subject = Subject(graph, request.hardware)
        counted = [limit for limit in limits if limit.key in COUNTED]
        saved = {"energy": method.still_saved()}
        reached = {x.key: reached_value(x.key, subject).number for x in counted}
        return all(reached[x.key] - saved.get(x.key, 0) <= x.maximum for x in counted)

    return fit(
        request.training,
        request.model,
        graph,
        method,
        request.valid,
        request.seed,
        request.identity,
        within,
        show.row,
    )


def _score(request: Request, model: nn.Module, show: Progress) -> float | None:
    if request.valid is None:
        return None
    with show.stage("evaluating"):
        return evaluate(model, request.valid, request.device, request.metric)


def _score_before(request: Request, model: nn.Module, show: Progress) -> float | None:
    """The metric of the original; of an earlier result that which was measured then, if any."""
    if request.origin is not None:  # what is given is no original, whatever it scores
        return request.origin.metrics["before"]
    return _score(request, model, show)


def _bases(
    subject: Subject, limits: Sequence[ResolvedLimit], origin: Compressed | None
) -> dict[str, int | float]:
    """Values of the original, for budgets of a later run."""
    known = {limit.key: limit.base for limit in limits if limit.base}
    if origin is not None:
        return {**origin.bases, **known}
    return {key: base_value(key, subject).number for key in sorted(COUNTED)} | known


def _base(limit: Limit, subject: Subject, origin: Compressed | None) -> int | float:
    """The value of the original dense model; 0 where it is neither known nor needed.

    Raises:
        UnsupportedBudget: The model comes from a result that does not know it.
    """
    key = limit.key
    if origin is None:
        return base_value(key, subject).number
    if subject.hardware != origin.costs.before.hardware:
        raise UnsupportedBudget(
            "the earlier result was made for another hardware, so the original's costs on this one "
            "are not known",
            where="hardware",
            remedy=f"Pass hardware={origin.costs.before.hardware.name!r}.",
        )
    if key in origin.bases:
        if key == LATENCY and limit.relative:
            _require_measured_here(origin)
        return origin.bases[key]
    # Of sizes and times, methods go by the base of an absolute limit as well.
    if not limit.relative and key in COUNTED | {"archive"}:
        return 0
    raise UnsupportedBudget(
        f"the earlier result does not know the {key!r} of its original",
        where="budget",
        remedy=f"It knows {', '.join(origin.bases)}; or compress the original.",
    )


def resolve(
    budget: Budget, subject: Subject, origin: Compressed | None = None
) -> tuple[ResolvedLimit, ...]:
    """The budget in absolute terms, relative to the original dense model."""
    resolved = []
    layers = [site.size for site in subject.graph.compressible]
    if origin is not None:
        layers = list(origin.layers)
    for limit in budget.limits:
        base = _base(limit, subject, origin)
        maximum = limit.resolve(base, subject.hardware, layers)
        share = limit.key == LATENCY and limit.relative
        timing = _timing_of_original(subject, origin) if share else None
        resolved.append(ResolvedLimit(limit, base, maximum, timing.spread if timing else 0.0))
    return tuple(resolved)


def _timing_of_original(subject: Subject, origin: Compressed | None) -> Timing | None:
    """How the latency of the original was measured, by this run or an earlier one."""
    return subject.timing() if origin is None else origin.timing


def _require_measured_here(origin: Compressed) -> None:
    """Raise if a share of another machine's time is asked for."""
    there = "" if origin.timing is None else other_machine(origin.timing.details)
    if there:
        raise UnsupportedBudget(
            f"the latency of the earlier result's original was measured on another machine "
            f"({there}), so no share of it says anything here",
            where="budget",
            remedy="Give an absolute limit, such as latency<=3 ms, or compress the original here.",
        )


def _finished(graph: ModelGraph, request: Request, sites: Mapping[str, Site]) -> ModelGraph:
    """Trace the finished model anew: nothing is taken from the method's own books.

    Args:
        graph: What the method has finished.
        request: The request.
        sites: The sites of the original: a method may have made layers smaller.
    """
    if any(parametrize.is_parametrized(m) for s in graph.compressible for m in _owners(graph, s)):
        raise PostconditionError(
            "the finished model still has parametrized weights",
            where=f"method {request.choice.spec.name!r}",
            remedy="finalize() must bake them.",
        )
    finished = traced_anew(graph, request.call)
    _check_rules(graph.rules, sites, finished, request)
    finished.decisions[:] = graph.decisions
    return finished


def _told(rule: LayerRule) -> str:
    if rule.min_density >= 1:
        return "left alone"
    return f"keeps at least {rule.min_density:.4g} of its weights"


def _check_rules(
    rules: Mapping[str, LayerRule], sites: Mapping[str, Site], after: ModelGraph, request: Request
) -> None:
    """Every method respects the rules for single layers, or says so by failing."""
    for name, rule in rules.items():
        kept, size = _kept(sites[name], after), sites[name].size
        if kept < min(rule.least(size), request.nonzeros(sites[name])):
            raise PostconditionError(
                f"{kept} of {size} weights are left, the rule says at least {rule.least(size)}",
                where=f"method {request.choice.spec.name!r}, layer {name!r}",
                remedy="Leave the rule out, or use a method that respects it.",
            )


def _kept(site: Site, after: ModelGraph) -> int:
    """Nonzero weights that are left of a site; the first owner of a tied one may be another."""
    owners = set(site.owners)
    same = [s for s in after.sites if owners & set(s.owners)]
    parts = [s for s in same if (s.start, s.size) == (site.start, site.size)]
    looked_up = sum(s.size for s in after.sites if s.computed and s.name == site.name)
    return looked_up + sum(int(torch.count_nonzero(after.weight(s))) for s in parts or same)


def _owners(graph: ModelGraph, site: Site) -> Sequence[nn.Module]:
    return [graph.module.get_submodule(path) for path, _ in site.owners]


def _certified(
    graph: ModelGraph,
    request: Request,
    limits: Sequence[ResolvedLimit],
    plan: Plan,
    before: CostTable,
    bases: dict[str, int | float],
) -> Compressed:
    choice = request.choice
    subject = Subject(graph, request.hardware, limits=limits)
    values = {limit.key: reached_value(limit.key, subject) for limit in limits}
    source = Source("model", state_digest(graph.module))
    origin = request.origin
    costs = Costs(before if origin is None else origin.costs.before, subject.costs)
    smaller = smaller_layers(costs)
    certificate = certify(limits, values, source, subject.costs, smaller=smaller)
    for row in certificate.failed:
        raise PostconditionError(
            f"{row.asked} allows {row.told(row.maximum)}, the finished model has "
            f"{row.told(row.reached)}",
            where=f"method {choice.spec.name!r}",
            remedy="This is an error of the method; please report it with the model."
            if row.kind == "exact"
            else REMEASURE,
        )
    return Compressed(
        model=graph.module,
        certificate=certificate,
        decisions=(*unspent(certificate, graph.decisions), *graph.decisions),
        plan=plan,
        costs=costs,
        method=choice.spec.name,
        config=choice.config.to_dict(),
        limits=tuple(limits),
        graph=graph,
        bases=bases,
        sizes=_sizes(subject, bases, values),
    )


def _sizes(
    subject: Subject, bases: Mapping[str, int | float], limited: Collection[str]
) -> Sizes | None:
    """Every way of counting, where one of them matters: none of them alone tells the truth."""
    if not subject.graph.codebooks and not {"weight_bits", "archive"} & set(limited):
        return None
    original = bases.get("archive", bases.get("size"))
    return count_sizes(
        subject, int(bases["weight_bits"]), None if original is None else int(original)
    )


def _history(
    before: float, result: Compressed, trained: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    last = {"energy": result.costs.after.total.energy.relaxed}
    rows = [{"event": "trained", **row} for row in trained]
    first = {"event": "original", "energy": before}
    return [first, *rows, {"event": f"finished: {result.method}", **last}]
