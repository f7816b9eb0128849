"""`transform train`: a base model or a teacher."""

from __future__ import annotations

import sys

from transform.cli import options
from transform.cli.config import training
from transform.cli.data import load_data
from transform.cli.model import load_model
from transform.cli.progress import progress_mode
from transform.progress import Progress
from transform.recipes.run import require_apart
from transform.training.config import TrainConfig
from transform.training.plain import train_plain

EPILOG = """
Examples:
  transform train bench.zoo:digits_cnn --data digits --out base
  transform train bench.zoo:resnet20 --data cifar10:augment=crop+flip \\
      --epochs 160 --train-set lr=0.1 --train-set schedule=step --out resnet20
"""


def train(
    model: options.Model,
    data: options.TrainingData,
    out: options.TrainedFolder,
    epochs: options.Epochs = None,
    settings: options.TrainSettings = None,
    weights: options.Weights = None,
    data_root: options.DataRoot = None,
    resume: options.Resume = True,
    seed: options.Seed = 0,
    device: options.Device = None,
) -> None:
    """Train a model without a budget: a base to compress, or a teacher.

    The same loop as in `transform compress`. The epoch is selected on the validation part; test
    data are read once, at the end. Writes weights.safetensors, for --weights of the other commands,
    and train.json; a killed run goes on from its checkpoints.
    """
    config = training(True, epochs, settings or [])
    chosen = config if isinstance(config, TrainConfig) else TrainConfig()
    show = Progress(progress_mode())
    with show.stage(f"building {model}"):
        built = load_model(model, weights, seed)
    loaded = load_data(data, seed, data_root)
    require_apart(loaded.valid, loaded.test)
    trained = train_plain(
        built,
        loaded.train,
        chosen,
        valid=loaded.valid,
        test=loaded.test,
        out=out,
        about={"model": model, "data": data, "weights": None if weights is None else str(weights)},
        resume=resume,
        device=device,
        seed=seed,
        progress=progress_mode(),
    )
    for name, score in trained.metrics.items():
        print(f"{name:<6} {'not measured' if score is None else f'{score:.2%}'}")
    print(f"written to {out}: train.json, weights.safetensors", file=sys.stderr)
