"""The tables of weights stored in 4 or 8 bits: a large linear layer, AlexNet, transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from bench.integer.cases import Case, measured_rows
from bench.integer.models import encoder, random_batches, seeded, torchvision_model
from bench.integer.ours import STORAGE_ONLY, Setup, case_of, float_case, quantized
from bench.integer.table import Section

_RANDOM = (
    "Random weights and inputs: no accuracy is claimed; the error is that of the outputs. Products "
    "of linear layers multiply codes (MatMulNBits). "
)
BLOCK = 32


def linear_section(setup: Setup, *, width: int = 4096) -> Section:
    """One linear layer at batch 1, and AlexNet, most of whose weights are in linear layers.

    Args:
        setup: How to measure.
        width: Inputs and outputs of the layer.
    """
    layer = seeded(lambda: nn.Sequential(nn.Linear(width, width)))
    cases = _widths(f"linear {width} x {width}", layer, random_batches(1, width), setup, "linear")
    rows, setting = measured_rows(
        cases, compared=_inputs(1, width), rounds=setup.rounds, say=setup.say
    )
    text = f"{_RANDOM}{setting}."
    return Section("linear", f"A linear layer of {width} x {width}, weights only", rows, text)


def alexnet_section(setup: Setup) -> Section:
    """AlexNet at 224 x 224: linear layers run on codes, convolutions store them."""
    model, data = torchvision_model("alexnet"), random_batches(1, 3, 224, 224)
    cases = _widths("AlexNet", model, data, setup, "alexnet", widths={"8-bit": 8, "4-bit": 4})
    stored = [
        Case(
            f"{case.label}, disable_quant_qdq",
            case.file,
            options=STORAGE_ONLY,
            note="codes decoded once, when the file is loaded",
            openvino=False,
        )
        for case in cases[1:]
    ]
    rows, setting = measured_rows(
        [*cases, *stored], compared=_inputs(1, 3, 224, 224), rounds=setup.rounds, say=setup.say
    )
    text = (
        f"{_RANDOM}Without the option the codes of convolutions are decoded at every inference. "
        f"{setting}."
    )
    return Section("alexnet", "AlexNet at 224 x 224, weights only", rows, text)


def encoder_section(
    setup: Setup, *, width: int = 512, layers: int = 6, tokens: int = 64
) -> Section:
    """A transformer encoder of plain modules.

    Args:
        setup: How to measure.
        width: Features of a token.
        layers: Number of layers.
        tokens: Tokens of an input.
    """
    model, data = encoder(width, layers), random_batches(1, tokens, width)
    cases = _widths("encoder", model, data, setup, "encoder")
    rows, setting = measured_rows(
        cases, compared=_inputs(2, tokens, width), rounds=setup.rounds, say=setup.say
    )
    title = f"Transformer encoder, {layers} layers of {width}, {tokens} tokens, weights only"
    return Section("encoder", title, rows, f"{_RANDOM}{setting}.")


def vit_section(setup: Setup) -> Section:
    """ViT-B/16 at 224 x 224."""
    model, data = torchvision_model("vit_b_16"), random_batches(1, 3, 224, 224, count=2)
    cases = _widths("ViT-B/16", _with_random_head(model), data, setup, "vit")
    rows, setting = measured_rows(
        cases, compared=_inputs(2, 3, 224, 224), rounds=setup.rounds, say=setup.say
    )
    return Section("vit", "ViT-B/16 at 224 x 224, weights only", rows, f"{_RANDOM}{setting}.")


def _with_random_head(model: nn.Module) -> nn.Module:
    """Its authors initialise the last layer with zeros: outputs of zero have no relative error."""

    def fill() -> nn.Module:
        for module in model.modules():
            if isinstance(module, nn.Linear) and not module.weight.any():
                module.reset_parameters()
        return model

    return seeded(fill)


def _widths(
    label: str,
    model: nn.Module,
    data: Sequence[Tensor],
    setup: Setup,
    name: str,
    widths: Mapping[str, int] | None = None,
) -> list[Case]:
    """Float, 8 bits, 4 bits, and by default 4 bits in blocks."""
    cases = [float_case(f"{label}, fp32", model, data[0], setup, name)]
    chosen = widths or {"8-bit": 8, "4-bit": 4, f"4-bit, blocks of {BLOCK}": 4}
    for kind, bits in chosen.items():
        block: dict[str, Any] = {"block": BLOCK} if "block" in kind else {}
        # The budget is that of the width: no weight stays float, those of attention included.
        # Nothing is claimed of random weights but time and size.
        plain: dict[str, Any] = {"reconstruct": False, **block}
        result, seconds = quantized(model, bits, data, activations=None, **plain)
        file = f"{name}-{bits}{'-block' if block else ''}"
        cases.append(case_of(f"{label}, {kind}", result, setup, file, form="qdq", seconds=seconds))
    return cases


def _inputs(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Inputs that no calibration has seen."""
    found: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = (
        random_batches(*shape, count=1, seed=1)[0].numpy().astype(np.float32)
    )
    return found
