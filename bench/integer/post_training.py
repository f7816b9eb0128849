"""The table of compression without training: what refitting layers to unlabelled data is worth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.integer.models import IMAGES, Trained, trained_resnet20
from bench.integer.ours import Setup, quantized, timed_compress, torch_accuracy
from bench.integer.table import Row, Section
from passes.methods.quantize_config import Quantize

ZEROS = (50, 70, 80)
BITS = 4
OTHERS = (
    ("70 % MACs by l2", "macs<=70%", ("l2",)),
    (
        "15 % energy by zeros and 8 bits",
        "energy<=15%",
        ("magnitude", Quantize(weights=8, activations=8)),
    ),
)
"""Labels, budgets, and the methods that meet them."""


def post_training_section(setup: Setup) -> Section:
    """ResNet-20: zeros by magnitude and 4-bit weights, each with and without reconstruction.

    Raises:
        StorageError: Data or weights are missing.
    """
    trained = trained_resnet20(setup.data_root)
    rows = []
    for row in _rows(trained):
        rows.append(row)
        setup.say(f"measured {row}")
    text = (
        f"ResNet-20 on CIFAR-10, trained weights, JPEG pixels, 10,000 test images; {IMAGES} "
        "unlabelled training images, no training. CPU time is that of the whole compression, all "
        "threads."
    )
    return Section(
        "post-training", "Without training: ResNet-20, CIFAR-10 (JPEG)", tuple(rows), text
    )


def _rows(trained: Trained) -> Iterator[Row]:
    model, data = trained.model, trained.unlabelled
    yield Row("fp32", torch_accuracy(model, trained.test))
    for reconstruct in (False, True):
        suffix = ", reconstructed" if reconstruct else ""
        arguments: dict[str, Any] = {"data": data, "reconstruct": reconstruct}
        for zeros in ZEROS:
            budget = f"nonzeros<={100 - zeros}%"
            result, seconds = timed_compress(model, budget, method="magnitude", **arguments)
            accuracy = torch_accuracy(result.model, trained.test)
            yield Row(f"{zeros} % zeros{suffix}", accuracy, seconds=seconds)
        result, seconds = quantized(model, BITS, data, activations=None, reconstruct=reconstruct)
        accuracy = torch_accuracy(result.model, trained.test)
        yield Row(f"{BITS}-bit weights{suffix}", accuracy, seconds=seconds)
        for label, budget, method in OTHERS:
            result, seconds = timed_compress(model, budget, method=[*method], **arguments)
            accuracy = torch_accuracy(result.model, trained.test)
            yield Row(f"{label}{suffix}", accuracy, seconds=seconds)
