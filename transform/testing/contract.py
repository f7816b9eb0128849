"""Does a method keep the contract? For authors of methods, ours and strangers'."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from energy_model.budget import Budget
from energy_model.errors import InfeasibleBudget
from energy_model.hardware import load_hardware
from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.methods.base import MethodSpec, Run
from passes.methods.config import MethodConfig
from passes.methods.registry import find_method
from passes.tracing.trace import trace
from transform.compress import compress
from transform.fingerprint import state_digest
from transform.gradients import Gradients
from transform.labelled import Labelled
from transform.limits import Subject
from transform.pipeline import resolve
from transform.result import Compressed
from transform.storage import load
from transform.testing.parts import feasible, labelled, require, small_models, unchanged
from transform.testing.resume import Trial, check_killed, check_resumed
from transform.unlabelled import Unlabelled

_SHARES = ("90%", "60%", "30%")


def check_method(method: str | MethodConfig, *, kill: bool = False) -> None:
    """Check a registered method against the contract, on small models.

    Checked: the configuration survives `to_dict` and `from_dict`; `plan` is pure and repeatable;
    every limit that the method says it serves is met, or refused with a tightest value that really
    is reachable (but latency, as no two measurements are equal); the caller's model and the global
    random state are untouched; the result is plain, finite, deterministic, of the caller's class
    when no shape changed, and survives saving. In training: `state_dict` holds only what a
    checkpoint can (numbers, strings, tensors, and lists, tuples and dicts of them),
    `load_state_dict` takes all of it back, and a run that was stopped in the middle of its epochs
    and resumed from `out` has, bit for bit, the weights, history and certificate of one that was
    not (on the CPU).

    Args:
        method: A name out of `transform.methods()`, or a configuration object.
        kill: Also end a run by SIGKILL (POSIX) and resume it, each in a process of its own. The
            method must be registered where a fresh process finds it.

    Raises:
        PostconditionError: The clause that is broken, and on which model and limit.
        ArgumentError: `kill`, and a fresh process does not find the method.
    """
    spec, config = find_method(method)
    keys = sorted(spec.serves - {"latency"})
    require(bool(keys), "the method serves no limit", spec.name)
    _check_config(spec, config)
    for number, (model, example) in enumerate(small_models()):
        for key in keys:
            for share in _SHARES:
                where = f"{spec.name}: {key}<={share} on {type(model).__name__}"
                _check_plan(spec, config, model, example, f"{key}<={share}", where)
                _check_run(config, model, example, f"{key}<={share}", where)
        budget = f"{keys[number % len(keys)]}<={_SHARES[1]}"
        where = f"{spec.name}: {budget} on {type(model).__name__}, trained"
        trial = check_resumed(spec, Trial(config, model, example, budget), where)
        if kill and not number:
            check_killed(trial, spec, where)


def _check_config(spec: MethodSpec, config: MethodConfig) -> None:
    again = spec.config.from_dict(config.to_dict())
    require(again == config, "the configuration changes when written and read", spec.name)
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
    data = labelled(own, example)

    def archive(finished: ModelGraph) -> int:
        return Subject(finished, subject.hardware).archive_bytes

    def size(finished: ModelGraph) -> int:
        return Subject(finished, subject.hardware, limits=limits).onnx_bytes

    gradients = Gradients(data, None, torch.device("cpu"))
    samples = Labelled(data, own, torch.device("cpu"))
    batches = Unlabelled(data, own, torch.device("cpu"))
    parts = {"limits": limits, "costs": subject.costs, "archive": archive, "size": size}
    run = replace(Run(gradients=gradients, labelled=samples, batches=batches), **parts)  # type: ignore[arg-type]
    try:
        plans = []
        for _ in range(2):
            method = spec.build(config)
            method.observe(graph, replace(run, generator=torch.Generator().manual_seed(0)))
            plans.append(method.plan(graph, subject.costs, limits))
    except InfeasibleBudget:
        return
    require(plans[0] == plans[1], "plan() differs between two calls", where)
    require(state_digest(own) == before, "plan() changes the model", where)
    require(not _parametrized(own), "plan() parametrizes the model", where)


def _parametrized(model: nn.Module) -> bool:
    return any(parametrize.is_parametrized(module) for module in model.modules())


def _check_run(
    config: MethodConfig, model: nn.Module, example: Tensor, budget: str, where: str
) -> None:
    def run(asked: Any) -> Compressed:
        return unchanged(
            model,
            where,
            lambda: compress(
                model,
                asked,
                labelled(model, example),
                example_inputs=example,
                method=config,
                train=False,
                progress="none",
            ),
        )

    result = feasible(run, budget, where)
    require(result.certificate.holds, "the certificate does not hold", where)
    require(not _parametrized(result.model), "the result is still parametrized", where)
    finite = all(bool(torch.isfinite(p).all()) for p in result.model.parameters())
    require(finite, "the result holds weights that are not finite", where)
    modes = result.model.training == model.training
    require(modes, "the result is not in the mode of the original", where)
    _check_keys(model, result, where)
    once_more = run(str(result.limits[0].limit))
    same = state_digest(once_more.model) == state_digest(result.model)
    require(same, "the same seed gives another result", where)
    _check_saved(result, example, where)


def _check_keys(model: nn.Module, result: Compressed, where: str) -> None:
    before, after = model.state_dict(), result.model.state_dict()
    # A method that puts nodes into the graph makes that the model.
    plain = not result.graph.rewritten
    if plain and all(before[k].shape == t.shape for k, t in after.items() if k in before):
        same = type(result.model) is type(model) and list(before) == list(after)
        require(same, "no shape changed, but the class or the state-dict keys did", where)


def _check_saved(result: Compressed, example: Tensor, where: str) -> None:
    with tempfile.TemporaryDirectory(prefix="transform-check-") as folder:
        result.save(Path(folder) / "saved")
        loaded = load(Path(folder) / "saved", model=result.model)
    a, b = copy.deepcopy(result.model).eval(), loaded.model.eval()
    with torch.no_grad():
        same = torch.equal(a(example), b(example))
    require(same, "the saved and loaded result computes something else", where)
