"""How fast the inner problems of joint compression are: `python -m bench.joint_speed`.

One round of the method projects all weights onto the budget, fits codebooks of 1 to 8 bits to every
layer, and allocates widths. Its time is divided by that of one `torch.sort` of the same weights,
and its memory by their bytes, in one run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn

from bench.measure import machine_name
from bench.speed.memory import extra_bytes
from bench.speed.ratio import Check, Outcome, Ratio
from bench.speed.report import Conditions, SpeedReport
from bench.speed.rounds import Settings, clocked, interleave, over_first
from bench.speed.subjects import RESNET50, Subject
from bench.speed.subprocesses import run_python
from energy_model.errors import CompressionError
from passes.joint.bit_allocation import Allocation, allocate_bits
from passes.joint.fit import codebook_costs
from passes.joint.sparsity import project_sparsity

TIME_TARGET, MEMORY_TARGET = 5.0, 2.0
START_BITS, DENSITY = 4, 0.25
LAYERS, SECONDS = 60, 1.0


class JointConditions(Conditions):
    """As of the other speed pages, of which this one has fewer parts."""

    __slots__ = ()

    def __str__(self) -> str:
        return (
            f"{self.machine}; torch {self.torch}, {self.threads} threads; {self.rounds} "
            f"interleaved rounds; load {self.load[0]:.1f} before, {self.load[1]:.1f} after."
        )


def joint_round(weights: list[Tensor], budget: int) -> Allocation:
    """Sparsity at the starting widths, codebooks of all widths of all weights, widths."""
    masks = project_sparsity(weights, [START_BITS] * len(weights), budget)
    costs = torch.stack([codebook_costs(weight) for weight in weights])
    counts = torch.tensor([int(mask.sum()) for mask in masks])
    return allocate_bits(costs, counts, budget)


def layers_of(subject: Subject) -> tuple[list[Tensor], int]:
    """Weights of all convolutions and linear layers, and the budget of a quarter at 4 bits."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    modules = subject.model().modules()
    weights = [m.weight.detach() for m in modules if isinstance(m, kinds)]
    return weights, int(sum(w.numel() for w in weights) * DENSITY * START_BITS)


def measure_round(subject: Subject, settings: Settings) -> Outcome:
    """Time of one round against one sort, and the extra memory in a fresh process."""
    weights, budget = layers_of(subject)
    flat = torch.cat([weight.reshape(-1) for weight in weights])
    turns = [clocked(partial(torch.sort, flat)), clocked(partial(joint_round, weights, budget))]
    rounds = interleave(turns, settings.rounds)
    name = f"one joint round of {subject.name}, {len(weights)} layers"
    shape = ",".join(map(str, subject.input_shape))
    arguments = (subject.name, subject.factory, shape, str(settings.threads))
    answer = json.loads(run_python("-m", "bench.joint_speed", "--memory", *arguments))
    pair = (answer["extra"], answer["weights"])
    found = joint_round(weights, budget)
    detail = f"{found.size:,} of {budget:,} bits, cost {found.cost:.6g}"
    return Outcome(
        (
            Ratio(name, "torch.sort", TIME_TARGET, over_first(rounds, 1)),
            Ratio(
                f"extra memory of {name}", "bytes of the weights", MEMORY_TARGET, (pair,), "bytes"
            ),
        ),
        (Check(f"{name}: the widths are proved optimal", found.exact, detail),),
    )


def random_layers(seed: int, layers: int = LAYERS) -> tuple[Tensor, Tensor]:
    """Costs that fall about fourfold a bit and counts from 100 to two million."""
    generator = np.random.default_rng(seed)
    counts = (10 ** generator.uniform(2, 6.3, size=layers)).astype(np.int64)
    energy = counts * 10 ** generator.uniform(-4, -1, size=layers)
    costs = energy[:, None] * 4.0 ** -np.arange(1, 9) * generator.uniform(0.8, 1.2, (layers, 8))
    falling = np.minimum.accumulate(costs, axis=1)
    return torch.from_numpy(falling), torch.from_numpy(counts)


def measure_allocations(seeds: Sequence[int], bits: Sequence[float] = (2.1, 3.3, 6.0)) -> Outcome:
    """Whether allocations of 60 layers are exact, and within a second each."""
    found = []
    slowest = 0.0
    for seed in seeds:
        costs, counts = random_layers(seed)
        for width in bits:
            start = time.perf_counter()
            found.append(allocate_bits(costs, counts, int(int(counts.sum()) * width)))
            slowest = max(slowest, time.perf_counter() - start)
    exact = sum(one.exact for one in found)
    holds = exact == len(found) and slowest <= SECONDS
    detail = f"{exact} of {len(found)} exact, the slowest in {slowest * 1e3:.0f} ms"
    name = f"allocations of {LAYERS} layers are exact within {SECONDS:g} s"
    return Outcome((), (Check(name, holds, detail),))


def measure(settings: Settings, subject: Subject = RESNET50) -> SpeedReport:
    """Everything, on an otherwise idle machine."""
    threads, before = torch.get_num_threads(), os.getloadavg()[0]
    torch.set_num_threads(settings.threads)
    try:
        outcome = measure_round(subject, settings) + measure_allocations(range(10))
    finally:
        torch.set_num_threads(threads)
    conditions = JointConditions(
        machine=f"{machine_name()}, {os.cpu_count()} cores",
        torch=torch.__version__,
        threads=settings.threads,
        rounds=settings.rounds,
        light_rounds=settings.light_rounds,
        load=(before, os.getloadavg()[0]),
    )
    return SpeedReport(outcome, conditions)


def main(
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads inside a torch operator.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write a Markdown page there.")] = None,
) -> None:
    """Measure one joint round of ResNet-50 against a sort of its weights.

    Takes a minute, on an otherwise idle machine. Exit code 1: a measuring process failed.
    """
    try:
        report = measure(Settings(rounds, threads))
    except CompressionError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(report.markdown("python -m bench.joint_speed"), encoding="utf-8")
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))


def print_memory(name: str, factory: str, shape: str, threads: str) -> None:
    """One round in this process; print `{"extra": bytes, "weights": bytes}`."""
    torch.set_num_threads(int(threads))
    weights, budget = layers_of(Subject(name, factory, tuple(map(int, shape.split(",")))))
    total = sum(weight.numel() * weight.element_size() for weight in weights)
    print(
        json.dumps({"extra": extra_bytes(lambda: joint_round(weights, budget)), "weights": total})
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print_memory(*sys.argv[2:])
    else:
        typer.run(main)
