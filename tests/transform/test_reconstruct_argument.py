"""When layers are reconstructed: by default with data that has no labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import transform
from energy_model.errors import ArgumentError
from passes.reconstruct.config import Reconstruction


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5)).eval()


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(12, 12, generator=generator)  # correlated inputs: there is what to gain
    return [torch.randn(64, 12, generator=generator) @ mix for _ in range(4)]


def labelled() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x, torch.zeros(64, dtype=torch.long)) for x in inputs()]


def error(model: nn.Module) -> float:
    x = torch.cat(inputs())
    with torch.no_grad():
        return float((model(x) - net()(x)).square().mean())


def compressed(data: Any, **arguments: Any) -> transform.Compressed:
    return transform.compress(
        net(), "nonzeros<=30%", data, method="magnitude", progress="none", **arguments
    )


def was_reconstructed(result: transform.Compressed) -> bool:
    return any(d.what == "layers are reconstructed" for d in result.decisions)


def test_data_without_labels_selects_it_and_it_helps() -> None:
    fitted, plain = compressed(inputs()), compressed(inputs(), reconstruct=False)
    assert was_reconstructed(fitted)
    assert not was_reconstructed(plain)
    assert error(fitted.model) < 0.7 * error(plain.model)
    assert fitted.certificate.rows[0].reached == plain.certificate.rows[0].reached


def test_labels_or_no_data_do_not_select_it() -> None:
    assert not was_reconstructed(compressed(labelled(), train=False))
    assert not was_reconstructed(compressed(None, example_inputs=inputs()[0]))


def test_data_that_can_be_read_only_once_tells_that_nothing_was_reconstructed() -> None:
    plain = compressed(iter(inputs()))
    assert not was_reconstructed(plain)
    assert any(d.what == "layers are not reconstructed" for d in plain.decisions)
    assert was_reconstructed(compressed(iter(inputs()), reconstruct=True))


@pytest.mark.slow
def test_it_can_be_asked_for_with_labels_and_before_training() -> None:
    asked = compressed(labelled(), train=False, reconstruct=True)
    assert was_reconstructed(asked)
    trained = transform.compress(
        net(),
        "macs<=60%",
        labelled(),
        method="l2",
        train=1,
        reconstruct=Reconstruction(batches=2),
        progress="none",
    )
    assert was_reconstructed(trained)


def test_batches_that_can_be_read_only_once_serve_too() -> None:
    asked = compressed(iter(inputs()), reconstruct=True)
    assert error(asked.model) == error(compressed(inputs()).model)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"data": None, "example_inputs": torch.zeros(2, 12), "reconstruct": True}, "no data"),
        ({"data": inputs(), "reconstruct": "yes"}, "str"),
        ({"data": inputs(), "reconstruct": {"batch": 3}}, "unknown fields"),
        ({"data": inputs(), "reconstruct": {"batches": 0}}, "not allowed"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        compressed(arguments.pop("data"), **arguments)
