"""The tables of convolutional networks: ResNet-20 with real data, ResNet-18 for latency."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import transform
from bench.integer.cases import Case, measured_rows
from bench.integer.models import (
    IMAGES,
    half_channels,
    random_batches,
    torchvision_model,
    trained_resnet20,
)
from bench.integer.ort_static import CALIBRATIONS, quantize_static
from bench.integer.ours import (
    EXACT_PRODUCTS,
    STORAGE_ONLY,
    Setup,
    case_of,
    float_case,
    quantized,
)
from bench.integer.sensitivity import sensitivity_table, weight_sensitivity
from bench.integer.table import Section
from bench.layer_plan import plan_layers

_HALF = (
    " Half the MACs: `transform run resnet20-cifar10-half`; trained so: that network through "
    "`python -m bench.integer.aware`."
)


def resnet20_section(setup: Setup) -> Section:
    """ResNet-20 on CIFAR-10: accuracy, latency and bytes, beside ONNX Runtime's own tool.

    Raises:
        StorageError: Data, weights or the saved folder are missing.
    """
    trained = trained_resnet20(setup.data_root)
    test = trained.test
    dense = float_case("fp32", trained.model, trained.unlabelled[0], setup, "dense", test=test)
    cases = [dense, *_integer(trained.model, trained.unlabelled, test, setup)]
    cases += _own_tool(dense, trained.unlabelled, setup)
    if setup.half is not None:
        cases += _half(setup, trained.unlabelled, test)
    rows, setting = measured_rows(cases, test=test, rounds=setup.rounds, say=setup.say)
    plan = plan_layers(dense.file, cases[1].file, rounds=setup.rounds)
    made = _HALF if setup.half is not None else ""
    text = (
        f"Trained weights, JPEG pixels, 10,000 test images; {IMAGES} unlabelled training images "
        f"calibrate. ONNX Runtime's own tool had the same images and the same file. {setting}."
        f"{made}"
    )
    extra = (
        "Layer by layer, float file and our int8 file, ONNX Runtime's profiler, everything between "
        f"two layers charged to the first:\n\n{plan.to_markdown()}"
    )
    found = weight_sensitivity(trained.model, torch.cat(trained.unlabelled))
    extra += (
        "\nThe output's signal to error when the weights of one layer alone are rounded, the most "
        f"sensitive first:\n\n{sensitivity_table(found)}"
    )
    return Section("resnet20", "ResNet-20, CIFAR-10 (JPEG)", rows, text, extra)


def _integer(
    model: nn.Module, data: Sequence[Tensor], test: Iterable[Any], setup: Setup
) -> list[Case]:
    result, seconds = quantized(model, 8, data, activations=8)
    int8 = case_of("int8", result, setup, "int8", form="qdq", test=test, seconds=seconds)
    exact = replace(int8, label="int8, x64quantprecision", options=EXACT_PRODUCTS, openvino=False)
    result, seconds = quantized(model, 7, data, activations=8)
    int7 = case_of("int7 weights", result, setup, "int7", form="qdq", test=test, seconds=seconds)
    result, seconds = quantized(model, 4, data, activations=None)
    int4 = case_of(
        "4-bit weights only",
        result,
        setup,
        "int4",
        form="qdq",
        test=test,
        seconds=seconds,
        note="codes of convolutions are storage; disable_quant_qdq",
        options=STORAGE_ONLY,
    )
    return [int8, exact, int7, int4]


def _own_tool(dense: Case, data: Sequence[Tensor], setup: Setup) -> list[Case]:
    batches = [batch.numpy() for batch in data]
    return [
        Case(
            f"quantize_static, {calibration}",
            quantize_static(dense.file, setup.file(f"ort-{calibration}"), batches, calibration),
            note="ONNX Runtime's own tool",
        )
        for calibration in CALIBRATIONS
    ]


def _half(setup: Setup, data: Sequence[Tensor], test: Iterable[Any]) -> list[Case]:
    if setup.half is None:
        return []
    half = transform.load(setup.half)
    result, seconds = quantized(half.model, 8, data, activations=8)
    aware = []
    if setup.aware is not None:
        trained = transform.load(setup.aware)
        label = "half the MACs, int8, trained so"
        aware = [case_of(label, trained, setup, "half-aware", form="qdq", test=test)]
    return [
        case_of("half the MACs, fp32", half, setup, "half", form="dense", test=test),
        case_of(
            "half the MACs, int8",
            result,
            setup,
            "half-int8",
            form="qdq",
            test=test,
            seconds=seconds,
        ),
        *aware,
    ]


def resnet18_section(setup: Setup, *, side: int = 224) -> Section:
    """ResNet-18 with random weights: what channels and integers are worth together.

    Args:
        setup: How to measure.
        side: Side of the square images, pixels.
    """
    data = random_batches(4, 3, side, side)
    whole = torchvision_model("resnet18")
    models = {"": whole, "half the channels, ": half_channels(whole, data[0])}
    cases = []
    for prefix, model in models.items():
        name = "half" if prefix else "whole"
        cases.append(float_case(f"{prefix}fp32", model, data[0], setup, f"r18-{name}"))
        result, seconds = quantized(model, 8, data, activations=8)
        cases.append(
            case_of(f"{prefix}int8", result, setup, f"r18-{name}-int8", form="qdq", seconds=seconds)
        )
    rows, setting = measured_rows(cases, rounds=setup.rounds, say=setup.say)
    text = f"Random weights and inputs: no accuracy is claimed. {setting}."
    return Section("resnet18", f"ResNet-18 at {side} x {side}", rows, text)
