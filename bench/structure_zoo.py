"""Which channels torchvision's classification models can lose, as a table.

Of every family the smallest member, with random weights. A random half of every free group is
dropped; the gated and the shrunk model are compared in double precision.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from energy_model.errors import ArgumentError
from passes.storage.atomic import write_file
from passes.structure.groups import ChannelGroup
from transform.structure import Structure, structure

FAMILIES = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
    "wide_resnet50_2",
)
COMMAND = "python -m bench.structure_zoo --out bench/results/structure.md"
TOLERANCE = 1e-9
_SIDES = {"vit_b_32": 224, "maxvit_t": 224, "inception_v3": 96}
_CLASSES = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One model.

    Attributes:
        name: Of torchvision's builder.
        free: Free groups.
        groups: All groups.
        units: Units of the free groups.
        params: Share of the parameters that is left without a random half of the units.
        macs: Share of the multiply-accumulates.
        error: Largest difference of gated and shrunk, as a share of the largest output.
        frozen: Why groups stay, but for the classes, the most frequent reasons first.
    """

    name: str
    free: int
    groups: int
    units: int
    params: float
    macs: float
    error: float
    frozen: str

    def __str__(self) -> str:
        agree = "yes" if self.error <= TOLERANCE else f"no: {self.error:.1e}"
        return (
            f"| {self.name} | {self.free} of {self.groups} | {self.units:,} | {self.params:.1%} "
            f"| {self.macs:.1%} | {agree} | {self.frozen or '-'} |"
        )


def measure_row(name: str, seed: int = 0) -> Row:
    """Trace, prove and cost one model.

    Args:
        name: One of `FAMILIES`.
        seed: Of the weights and of the units that are dropped.

    Raises:
        ArgumentError: Unknown name.
    """
    if name not in FAMILIES:
        raise ArgumentError(f"unknown model {name!r}", remedy=f"One of {', '.join(FAMILIES)}.")
    model, image = _model(name, seed), _image(name, seed)
    found = structure(model, image)
    proof = found.proof(seed)
    return Row(
        name,
        len(found.groups.free),
        len(found.groups),
        sum(group.units for group in found.groups.free),
        proof.after["params"] / proof.before["params"],
        proof.after["macs"] / proof.before["macs"],
        proof.error / proof.largest,
        _reasons(found),
    )


def to_markdown(rows: Iterable[Row]) -> str:
    """The table, its legend and its command."""
    lines = [
        "# Channel structure of torchvision's classification models",
        "",
        "| model | free groups | units | parameters left | MACs left | gated = shrunk | stays, "
        "but for the classes |",
        "| --- |" + " ---: |" * 4 + " --- | --- |",
        *map(str, rows),
        "",
        f"Of every family the smallest model, {_CLASSES} classes, random weights. Left: without a "
        "random half of the units of every free group. Gated = shrunk: the outputs agree within "
        f"{TOLERANCE:g} of the largest, in double precision.",
        "",
        f"Made with `{COMMAND}`.",
        "",
    ]
    return "\n".join(lines)


def _model(name: str, seed: int) -> nn.Module:
    import_module("bench.zoo")  # makes torchvision importable on a CPU-only torch
    models = import_module("torchvision.models")
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # inside a fork of the random state
        model: nn.Module = models.get_model_builder(name)(
            weights=None, num_classes=_CLASSES, **extra
        )
        _randomize(model)
    return model.double().eval()


@torch.no_grad()
def _randomize(model: nn.Module) -> None:
    """Give norms, biases and what begins at zero values of their own: a mix-up must show."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    for name, tensor in tensors:
        small = tensor.dim() < 2 or float(tensor.abs().max()) < 1e-4
        if tensor.is_floating_point() and small:
            shift = 0.5 if name.endswith(("weight", "var")) else -0.5
            tensor.uniform_().add_(shift)


def _image(name: str, seed: int) -> Tensor:
    side = _SIDES.get(name, 64)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, side, side, generator=generator, dtype=torch.float64)


def _reasons(found: Structure) -> str:
    """Why groups stay: the words after the name of the layer, which differ from place to place."""
    counted = Counter(
        _general(group) for group in found.groups if group.frozen and "output of" not in group.why
    )
    return "; ".join(f"{count} x {why}" for why, count in counted.most_common())


def _general(group: ChannelGroup) -> str:
    """A reason without the places that it names."""
    layer = re.search(r"\S+ \((\w+)\)", group.why)
    why = group.why.replace(layer[0], layer[1]) if layer else group.why
    why = re.sub(r" in \S*[._]\S*", "", why)
    return why.partition(" in add")[0]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    rows = []
    for name in FAMILIES:
        rows.append(measure_row(name))
        print(rows[-1], flush=True)
    write_file(out, to_markdown(rows).encode())


if __name__ == "__main__":
    main()
