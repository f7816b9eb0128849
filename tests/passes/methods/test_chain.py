"""Several methods in a row: what each gets of the budget, what it keeps, in which order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import transform
from energy_model.errors import ArgumentError, InfeasibleBudget, UnsupportedBudget
from energy_model.hardware import load_hardware
from passes.methods.base import Method
from passes.methods.chain import Chain, chain_spec
from passes.methods.magnitude import Magnitude
from passes.methods.quantize_config import Quantize
from passes.methods.registry import find_method
from passes.methods.structured_config import L2Channels


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def images(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 12, 12, generator=generator) for _ in range(count)]


def test_one_energy_budget_is_met_by_zeros_and_bits_together() -> None:
    model, data = net(), images()
    both = transform.compress(
        model, "energy<=35%", data, method=["magnitude", Quantize(8, 8)], progress="none"
    )
    assert both.certificate.holds
    for site in both.graph.sites:
        both.graph.encodings[site.name].check(both.graph.weight(site), site.name)
    with pytest.raises(InfeasibleBudget):  # bits alone do not reach it
        transform.compress(model, "energy<=35%", data, method=Quantize(8, 8), progress="none")
    alone = transform.compress(model, "energy<=70%", data, method="magnitude", progress="none")
    same = transform.compress(
        model, "energy<=70%", data, method=["magnitude", Quantize(8, 8)], progress="none"
    )
    # At its final width a weight costs less, so that more of them are kept.
    assert same.costs.after.total.nonzeros > alone.costs.after.total.nonzeros
    assert same.costs.after.total.energy.relaxed <= 0.7 * same.costs.before.total.dense


def test_the_plan_of_a_chain_predicts_what_the_model_costs() -> None:
    result = transform.compress(
        net(), "energy<=35%", images(), method=["magnitude", Quantize(8, 8)], progress="none"
    )
    [row] = result.certificate.rows
    # Weights that round to zero afterwards only lower it.
    assert row.reached <= result.plan.reached["energy"] <= row.maximum
    assert result.method == "magnitude+quantize"
    assert [s["config"] for s in result.config["stages"]] == ["Magnitude", "Quantize"]


def test_channels_go_before_weights_are_rounded() -> None:
    result = transform.compress(
        net(), "macs<=60%", images(), method=["l2", Quantize(8, 8)], progress="none"
    )
    assert result.certificate.holds
    assert result.costs.after.total.weights < result.costs.before.total.weights
    assert {row.bits for row in result.costs.after} == {8}


@pytest.mark.slow
def test_every_limit_goes_to_the_first_method_that_serves_it() -> None:
    result = transform.compress(
        net(),
        "nonzeros<=50%, weight_bits<=13%",
        images(),
        method=["magnitude", Quantize(8, None)],
        progress="none",
    )
    assert result.certificate.holds
    with pytest.raises(UnsupportedBudget):
        transform.compress(
            net(), "macs<=50%", images(), method=["magnitude", Quantize()], progress="none"
        )


def test_a_list_of_one_is_that_method() -> None:
    result = transform.compress(
        net(), "nonzeros<=50%", example_inputs=images(1)[0], method=["magnitude"], progress="none"
    )
    assert result.method == "magnitude"


@pytest.mark.slow
def test_training_keeps_masks_and_grids() -> None:
    data = [
        (x, torch.randint(10, (8,), generator=torch.Generator().manual_seed(2))) for x in images()
    ]
    result = transform.compress(
        net(),
        "nonzeros<=30%",
        data,
        valid=data,
        method=["magnitude", Quantize(4, 8)],
        train=transform.TrainConfig(epochs=2),
        progress="none",
    )
    assert result.certificate.holds
    assert set(result.graph.encodings) == {site.name for site in result.graph.sites}
    assert {row.bits for row in result.costs.after} == {4}


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        (["quantize", "magnitude"], "before 'quantize'"),
        (["quantize", "l2"], "before 'quantize'"),
        (["magnitude", "magnitude"], "several different"),
        ([], "several different"),
        ([Magnitude(pattern="2:4"), "l2"], "keep its shapes"),
        ([L2Channels(steps=3), "quantize"], "steps at 1"),
        (["magnitude", "nothing"], "unknown method"),
    ],
)
def test_orders_that_break_a_guarantee_are_refused(methods: list[Any], told: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        chain_spec(methods)
    assert told in str(caught.value)


def test_hooks_of_all_stages_are_called_in_order() -> None:
    called: list[tuple[str, str]] = []
    spec, config = chain_spec(["magnitude", "quantize"])
    chain = spec.build(config)
    for stage, name in zip(chain.stages, ("first", "second"), strict=True):
        for hook in ("on_step", "on_epoch", "on_gradients", "on_phase_start", "on_phase_end"):
            setattr(stage, hook, lambda *_, h=hook, n=name: called.append((h, n)))
    chain.on_step(1, None)
    chain.on_epoch(1, None)
    chain.on_gradients(None)
    chain.on_phase_start(None)
    chain.on_phase_end(None)
    assert called == [
        (hook, n)
        for hook in ("on_step", "on_epoch", "on_gradients", "on_phase_start", "on_phase_end")
        for n in ("first", "second")
    ]


def test_every_hook_of_a_method_is_passed_on() -> None:
    """A hook that is added to the interface must be added to the chain."""
    from passes.methods.chain import ChainMethod

    hooks = {n for n in vars(Method) if not n.startswith("_")}
    assert hooks <= set(vars(ChainMethod))


def test_the_configuration_names_its_stages() -> None:
    _, config = chain_spec(["l2", Quantize(4, None)])
    assert isinstance(config, Chain)
    assert [find_method(stage)[0].name for stage in config.stages] == ["l2", "quantize"]
    assert config.to_dict()["stages"][1]["weights"] == 4


def test_horowitz_joules_are_met_by_a_chain() -> None:
    hardware = load_hardware("horowitz")
    model, data = net(), images()
    dense = transform.analyze(model, data[0], hardware=hardware).total.energy.relaxed
    joules = hardware.joules(dense)
    assert joules is not None
    result = transform.compress(
        model,
        f"energy<={joules * 0.35e9:.6g} nJ",
        data,
        method=["magnitude", Quantize(8, 8)],
        hardware=hardware,
        progress="none",
    )
    assert result.certificate.holds
    assert hardware.joules(result.costs.after.total.energy.relaxed) <= joules * 0.3500001
