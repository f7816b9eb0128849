"""Predicted against measured latency of networks that the prediction was not fitted to.

    python -m bench.latency_check --net resnet20 --unseen 20 --out bench/results/latency

writes resnet20.md and resnet20.json into that folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

from bench.latency_model import NETWORKS, MeasuredNetworks
from bench.zoo.cifar_resnet import resnet20
from bench.zoo.lenet5 import LeNet5
from energy_model.errors import ArgumentError, CompressionError
from energy_model.latency import LatencyModel
from energy_model.latency_fit import TimedNetwork, fit_latency
from energy_model.units import format_seconds
from passes.inputs import as_call
from passes.storage.atomic import json_bytes, write_file
from passes.tracing.trace import trace

GOAL = 0.10
"""Largest median error that is called met."""


class Net(StrEnum):
    """A network that the command can measure."""

    RESNET20 = "resnet20"
    LENET5 = "lenet5"


_NETS: Mapping[Net, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    Net.RESNET20: (resnet20, (1, 3, 32, 32)),
    Net.LENET5: (LeNet5, (1, 1, 32, 32)),
}


@dataclass(frozen=True, slots=True)
class Checked:
    """A latency model, and networks that it was not fitted to.

    Attributes:
        name: Name of the network.
        command: What was run.
        model: The model.
        fitted: Number of the networks that it was fitted to.
        unseen: Networks that it was not fitted to, measured after it was made.
        seconds: Time to write, measure and fit the former.
        load: Load average of the machine before, during the fit, and after.
    """

    name: str
    command: str
    model: LatencyModel
    fitted: int
    unseen: tuple[TimedNetwork, ...]
    seconds: float
    load: tuple[float, float, float]

    @property
    def predicted(self) -> tuple[float, ...]:
        """Predicted seconds of the unseen networks."""
        return tuple(self.model.predict(network.widths) for network in self.unseen)

    @property
    def errors(self) -> tuple[float, ...]:
        """|predicted - measured| / measured of the unseen networks."""
        pairs = zip(self.predicted, self.unseen, strict=True)
        return tuple(abs(guess / network.seconds - 1) for guess, network in pairs)

    @property
    def median(self) -> float:
        """Median of the errors."""
        return float(np.median(self.errors))

    @property
    def blind(self) -> float:
        """Median error of who always says the median of the times: what the widths are worth."""
        times = np.array([network.seconds for network in self.unseen])
        return float(np.median(np.abs(np.median(times) / times - 1)))

    @property
    def order(self) -> float:
        """Correlation of the ranks of predicted and measured times; 0 where one does not vary."""
        measured = [network.seconds for network in self.unseen]
        own, true = (
            np.unique(times, return_inverse=True)[1] for times in (self.predicted, measured)
        )
        if not own.any() or not true.any():
            return 0.0
        return float(np.corrcoef(own, true)[0, 1])

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        rows = zip(self.predicted, self.unseen, self.errors, strict=True)
        return {
            "net": self.name,
            "command": self.command,
            "median_error": self.median,
            "worst_error": max(self.errors),
            "blind_error": self.blind,
            "rank_correlation": self.order,
            "fitted": self.fitted,
            "seconds": self.seconds,
            "load": list(self.load),
            "unseen": [
                {"predicted": guess, "measured": network.seconds, "error": error}
                | {"widths": {name: list(pair) for name, pair in network.widths.items()}}
                for guess, network, error in rows
            ],
            "model": self.model.to_dict(),
        }

    def markdown(self) -> str:
        """The page."""
        about, met = self.model.about, "met" if self.median <= GOAL else "NOT met"
        lines = [
            f"# Predicted and measured latency: {self.name}",
            "",
            f"    {self.command}",
            "",
            "The latency of networks of random widths, as multiples of that of the whole network, "
            f"which takes its turn among them: batch {about['batch']}, "
            f"{about['threads']} thread, {about['runtime']}, {about['machine']}. The prediction "
            f"was fitted to {self.fitted} other networks, which took {self.seconds:.0f} s to write "
            "and measure; load average "
            f"{', '.join(f'{value:.2f}' for value in self.load)} (before, after the fit, at the "
            "end). Weights are random: they do not change the time.",
            "",
            f"Error on {len(self.unseen)} unseen networks: median {self.median:.1%}, worst "
            f"{max(self.errors):.1%}; goal of {GOAL:.0%} in the median: {met}. To say their median "
            f"time of each, without its widths, is {self.blind:.1%} off. Rank correlation "
            f"{self.order:.2f}. Cross-validated on the networks of the fit: {self.model.held_out}.",
            "",
            "| network | predicted | measured | error |",
            "|---:|---:|---:|---:|",
        ]
        rows = zip(self.predicted, self.unseen, self.errors, strict=True)
        lines += [
            f"| {number} | {format_seconds(guess)} | {format_seconds(network.seconds)} "
            f"| {error:.1%} |"
            for number, (guess, network, error) in enumerate(rows, 1)
        ]
        return "\n".join([*lines, ""])


def check(
    net: Net,
    *,
    networks: int = NETWORKS,
    unseen: int = 20,
    multiple: int = 1,
    seed: int = 0,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Checked:
    """Fit a latency model, then measure networks that it has not seen.

    Args:
        net: The network.
        networks: How many the model is fitted to.
        unseen: How many it is tested on.
        multiple: Channel counts are multiples of this.
        seed: Of all widths.
        command: For the record.
        progress: Called with networks done, and in all.

    Raises:
        ArgumentError: Fewer than two networks, or no unseen one.
        BenchError: A measurement fails.
    """
    if unseen < 1:
        raise ArgumentError(f"{unseen} networks", where="unseen", remedy="Test on at least one.")
    build, shape = _NETS[net]
    model = build().eval()
    graph = trace(model, as_call(model, torch.zeros(shape)))
    loads, begin = [os.getloadavg()[0]], time.perf_counter()
    subject = MeasuredNetworks(graph, multiple, seed)
    fitted = subject.measure(subject.draw(networks), progress)
    found = fit_latency(fitted, about=subject.about, seed=seed)
    seconds = time.perf_counter() - begin
    loads.append(os.getloadavg()[0])
    others = _not_among(subject, fitted, unseen, progress)
    load = (loads[0], loads[1], os.getloadavg()[0])
    return Checked(net.value, command, found, networks, tuple(others), seconds, load)


def _not_among(
    subject: MeasuredNetworks,
    fitted: Sequence[TimedNetwork],
    count: int,
    progress: Callable[[int, int], None] | None,
) -> list[TimedNetwork]:
    """Networks of widths that none of the fitted ones has."""
    known = [network.widths for network in fitted]
    states: list[dict[str, Any]] = []
    for _ in range(100 * count):
        state = subject.draw_one()
        if len(states) < count and subject.widths(state) not in known:
            known.append(subject.widths(state))
            states.append(state)
    if len(states) < count:
        raise ArgumentError(
            f"there are only {len(states)} networks of other widths",
            where="unseen",
            remedy="Ask for fewer, or allow more widths.",
        )
    return subject.measure(states, progress)


def main(
    net: Annotated[Net, typer.Option(help="The network; its weights are random.")],
    networks: Annotated[int, typer.Option(help="Networks to fit to.")] = NETWORKS,
    unseen: Annotated[int, typer.Option(help="Networks to test on.")] = 20,
    multiple: Annotated[int, typer.Option(help="Channel counts are multiples of this.")] = 1,
    seed: Annotated[int, typer.Option(help="Of all widths.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for NET.md and NET.json.")] = None,
) -> None:
    """Fit the latency of a network on this machine, and test it on networks of other widths.

    Takes two minutes, on an otherwise idle machine. Exit codes: 0 done; 1 a measurement failed; 2
    bad usage.
    """
    words = f"--net {net.value} --networks {networks} --unseen {unseen}"
    command = f"python -m bench.latency_check {words} --multiple {multiple} --seed {seed}"
    options = {"networks": networks, "unseen": unseen, "multiple": multiple, "seed": seed}
    try:
        found = check(net, **options, command=command, progress=_say)
        if out is not None:
            write_file(out / f"{net.value}.md", found.markdown().encode())
            write_file(out / f"{net.value}.json", json_bytes(found.to_dict()))
    except CompressionError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ArgumentError) else 1) from error
    typer.echo(found.markdown())


def _say(done: int, total: int) -> None:
    typer.echo(f"network {done + 1} of {total}", err=True)


if __name__ == "__main__":
    typer.run(main)
