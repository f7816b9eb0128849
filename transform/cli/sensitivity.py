"""`transform sensitivity`: layers ranked by what pruning them costs and saves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from passes.storage.atomic import json_bytes, write_file
from transform.cli import options
from transform.cli.config import layer_rules
from transform.cli.data import load_data
from transform.cli.model import load_model
from transform.cli.progress import progress_mode
from transform.cli.run import typed_command
from transform.progress import Progress
from transform.sensitivity import sensitivity as rank_layers

EPILOG = """
Examples:
  transform sensitivity bench.zoo:digits_cnn --data digits --out ranks
  transform sensitivity bench.zoo:lenet5 --weights weights/mnist_lenet5.pt \\
      --data mnist:size=32 --data-root data --sparsity 0.5 --sparsity 0.9 --out ranks
"""
FORMAT, VERSION = "transform-sensitivity", 1

RanksFolder = Annotated[
    Path,
    typer.Option(
        metavar="DIR",
        help="Folder for sensitivity.json and sensitivity.png; existing ones are replaced.",
    ),
]
Sparsities = Annotated[
    list[float] | None,
    typer.Option(
        "--sparsity",
        metavar="SHARE",
        help="Share of each layer's weights to zero, above 0 and up to 1; may be repeated. By "
        "default 0.5.",
    ),
]
Batches = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Measure on the first N batches only.")
]


def sensitivity(
    model: options.Model,
    data: options.TrainingData,
    out: RanksFolder,
    weights: options.Weights = None,
    sparsity: Sparsities = None,
    layers: options.LayerRules = None,
    hardware: options.Hardware = "eyeriss",
    batches: Batches = None,
    data_root: options.DataRoot = None,
    seed: options.Seed = 0,
    device: options.Device = None,
) -> None:
    """Rank layers by how much the loss rises for what pruning them saves.

    Each layer alone has its smallest weights zeroed. The loss is measured on the validation part of
    the data, on the training part if there is none; test data are never read. Prints a table: loss
    change per byte, per unit of modelled energy and per MAC.
    """
    show = Progress(progress_mode())
    with show.stage(f"building {model}"):
        built = load_model(model, weights, seed)
    loaded = load_data(data, seed, data_root)
    part = "train" if loaded.valid is None else "valid"
    found = rank_layers(
        built,
        loaded.train if loaded.valid is None else loaded.valid,
        hardware=hardware,
        sparsity=sparsity or (0.5,),
        layers=layer_rules(layers),
        device=device,
        batches=batches,
        progress=progress_mode(),
    )
    about = {
        "format": FORMAT,
        "version": VERSION,
        "command": typed_command(),
        "model": model,
        "weights": None if weights is None else str(weights),
        "data": data,
        "part": part,
        "seed": seed,
    }
    write_file(out / "sensitivity.json", json_bytes(about | found.to_dict()))
    found.plot(out / "sensitivity.png")
    print(found)
    print(f"measured on the {part} part", file=sys.stderr)
    print(f"written to {out}: sensitivity.json, sensitivity.png", file=sys.stderr)
