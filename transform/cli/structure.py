"""`transform structure`: which channels of a model can be removed."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from transform.cli import options
from transform.cli.model import example_inputs, load_model
from transform.cli.progress import progress_mode
from transform.progress import Progress
from transform.structure import Structure
from transform.structure import structure as find_structure

EPILOG = """
Examples:
  transform structure torchvision.models:resnet18 --input 1,3,224,224
  transform structure torchvision.models:vit_b_16 --input 1,3,224,224 --json
"""

Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Also prove it: drop a random half of every free group, and compare the model with "
        "these channels set to zero to the model without them.",
    ),
]


def structure(
    model: options.Model,
    inputs: options.Inputs,
    hardware: options.Hardware = "eyeriss",
    prove: Seed = None,
    as_json: options.AsJson = False,
) -> None:
    """Print the channel groups of a model: what goes together, what stays, and why.

    The members of a group lose the same channels or none. Nothing is written.
    """
    show = Progress(progress_mode())
    examples = example_inputs(inputs)
    with show.stage(f"building {model}"):
        built = load_model(model)
    with show.stage("finding the channel groups"):
        found = find_structure(built, examples, hardware)
    proof = None
    if prove is not None:
        with show.stage("comparing"):
            proof = found.proof(prove)
    if as_json:
        print(json.dumps(found.to_dict() | ({"proof": proof.to_dict()} if proof else {}), indent=1))
        return
    _print(found)
    if proof is not None:
        print(proof)


def _print(found: Structure) -> None:
    print(found)
    named = {group.name for group in found.groups}
    for decision in found.groups.decisions:
        if decision.layer not in named:
            print(f"{decision.layer or 'the model'}: {decision.what}: {decision.why}")
