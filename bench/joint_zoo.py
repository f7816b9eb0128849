"""Joint projections in one shot: does every network meet its budget? `python -m bench.joint_zoo`.

Networks of torchvision with random weights, which are harder to make small than trained ones: no
accuracy is claimed. A row for each network and budget; shares of archives are of the float ONNX
file, shares of bits of the dense weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import transform
from bench.measure import machine_name

NETWORKS = ("mobilenet_v2", "mnasnet1_0", "resnet50")
BUDGETS = ("weight_bits<=12.5%", "weight_bits<=6.25%", "archive<=12.5%", "archive<=6.25%")
_SIDE = 224


@dataclass(frozen=True, slots=True)
class Row:
    """One network at one budget.

    Attributes:
        network: Name in torchvision.
        budget: As asked.
        maximum: What it allows: bits or bytes.
        reached: What was counted from the result.
        holds: Whether it is met.
        nonzeros: Share of the weights that are left.
        cpu_seconds: Of the whole compression.
    """

    network: str
    budget: str
    maximum: int
    reached: int
    holds: bool
    nonzeros: float
    cpu_seconds: float


def project(network: str, budget: str) -> Row:
    """Compress one network in one shot."""
    model = _network(network)
    began = time.process_time()
    result = transform.compress(
        model,
        budget,
        example_inputs=torch.randn(1, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0)),
        method="joint",
        progress="none",
    )
    seconds = time.process_time() - began
    [row] = result.certificate.rows
    after, before = result.costs.after.total, result.costs.before.total
    share = after.nonzeros / before.weights
    return Row(
        network, budget, int(row.maximum), int(row.reached), row.holds, share, round(seconds, 1)
    )


def _network(name: str) -> nn.Module:
    import bench.zoo  # noqa: F401 -- makes torchvision importable on a CPU-only torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = getattr(import_module("torchvision.models"), name)()
    return model.eval()


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| network | budget | allowed | reached | used | weights left | CPU s |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.network} | {row.budget} | {row.maximum:,} | {row.reached:,} | "
        f"{row.reached / row.maximum:.2%} | {row.nonzeros:.1%} | {row.cpu_seconds:,.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(
    out: Annotated[Path | None, typer.Option(help="Folder for joint-zoo.md and .json.")] = None,
    networks: Annotated[str, typer.Option(help="Names, with commas.")] = ",".join(NETWORKS),
    budgets: Annotated[str, typer.Option(help="Budgets, with semicolons.")] = ";".join(BUDGETS),
) -> None:
    """Project every network onto every budget, and print the table."""
    rows = []
    for network in networks.split(","):
        for budget in budgets.split(";"):
            rows.append(project(network, budget))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    if out is not None:
        _write(out, rows)


def _write(out: Path, rows: list[Row]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    head = f"`python -m bench.joint_zoo --out {out}`, {machine_name()}\n\n"
    (out / "joint-zoo.md").write_text(f"# Joint projections in one shot\n\n{head}{table(rows)}\n")
    found: dict[str, Any] = {"machine": machine_name(), "rows": [asdict(row) for row in rows]}
    (out / "joint-zoo.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
