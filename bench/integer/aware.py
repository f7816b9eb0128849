"""Quantization-aware fine-tuning of ResNet-20 at half its MACs, taught by the dense network.

python -m bench.integer.aware --half DIR --out DIR [--data-root DIR] [--epochs 3]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import transform
from bench.integer.models import trained_resnet20
from bench.zoo.data.load import load_data
from bench.zoo.data_root import data_root
from passes.methods.quantize_config import Quantize
from transform.training.config import Distill, TrainConfig

_DATA = "cifar10-jpeg:normalize=imagenet,augment=crop+flip"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and save the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--half", type=Path, required=True, help="the saved smaller network")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result; free")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--epochs", type=int, default=3)
    chosen = parser.parse_args(arguments)
    root = chosen.data_root or data_root()
    result = transform.compress(
        transform.load(chosen.half).model,
        "weight_bits<=25%",
        load_data(_DATA, root=root).train,
        method=Quantize(weights=8, activations=8),
        teacher=trained_resnet20(root).model,
        train=TrainConfig(
            epochs=chosen.epochs,
            lr=0.01,
            momentum=0.9,
            nesterov=True,
            distill=Distill(0.5, "kl", 4.0),
            select="last",
        ),
        out=chosen.out,
    )
    print(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
