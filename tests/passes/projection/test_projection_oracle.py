"""The published projection of LeNet-5 and SqueezeNet with formula-made weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_projection import histograms_of, masks_of

from energy_model.energy import activation_energy, layer_energy
from energy_model.hardware import load_hardware
from energy_model.price import weight_price
from energy_model.shapes import LayerShape
from passes.projection.allocate import allocate
from passes.projection.fill import fill
from passes.projection.ladder import build_ladder

EYERISS = load_hardware("eyeriss")
LENET = (
    LayerShape.conv(1, 6, 5, (32, 32)),
    LayerShape.conv(6, 16, 5, (14, 14)),
    LayerShape.linear(400, 120),
    LayerShape.linear(120, 84),
    LayerShape.linear(84, 10),
)


def formula_weights(shapes):
    """Deterministic weights in [-1, 1) / sqrt(fan_in), float64."""
    weights = []
    for layer, shape in enumerate(shapes):
        index = np.arange(1, shape.weights + 1, dtype=np.int64)
        unit = (index * 2654435761 + (layer + 1) * 40503 * 65537) % 2**32 / 2**32 - 0.5
        fan_in = shape.weights // shape.out_channels
        weights.append(torch.from_numpy(2 * unit / np.sqrt(fan_in)))
    return weights


def problem(shapes, share):
    dense = sum(layer_energy(shape, EYERISS).relaxed for shape in shapes)
    floor = sum(activation_energy(shape, EYERISS)[0] for shape in shapes)
    ladders = []
    for shape in shapes:
        price = weight_price(shape, EYERISS)
        steps = [(price.capacity, (price.first,)), (shape.weights, (price.beyond,))]
        ladders.append(build_ladder(shape.weights, steps))
    return ladders, int(share * dense + 1e-6), floor


def removed(weights, result):
    masks = masks_of(weights, result)
    return sum(float((w[~m] ** 2).sum()) for w, m in zip(weights, masks, strict=True))


def test_first_weights():
    first, second, *_ = formula_weights(LENET)
    assert first[:3].tolist() == pytest.approx([-0.105571940, 0.141641655, -0.011144750])
    assert second[:3].tolist() == pytest.approx([0.057825318, -0.004549470, -0.066924259], abs=1e-9)


@pytest.mark.parametrize(
    ("share", "budget", "counts", "relaxed", "left", "distance"),
    [
        (0.5, 8553772, (51, 769, 17818, 6609, 598), 8553452, (320, 654), 13.41538313),
        (0.3, 5132263, (10, 117, 5768, 5223, 501), 5132102, (161, 210), 36.80263078),
        (0.2, 3421508, (0, 0, 0, 3507, 381), 3421424, (84, 210), 55.62893929),
    ],
)
def test_lenet5(share, budget, counts, relaxed, left, distance):
    ladders, asked, floor = problem(LENET, share)
    assert asked == budget
    weights = formula_weights(LENET)
    result = allocate(weights, ladders, [budget - floor])
    assert result.counts == counts
    assert floor + result.used[0] == relaxed
    assert (result.residual[0], result.next_charges[0]) == left
    assert removed(weights, result) == pytest.approx(distance, abs=5e-9)


@pytest.mark.parametrize("share", [0.5, 0.3, 0.2])
def test_energy_of_the_result_is_the_sum_of_its_prices(share):
    ladders, budget, floor = problem(LENET, share)
    weights = formula_weights(LENET)
    histograms = histograms_of(weights)
    prefix = allocate(weights, ladders, [budget - floor], histograms=histograms)
    result = fill(prefix, weights, ladders, histograms)
    total = 0
    for shape, mask in zip(LENET, masks_of(weights, result), strict=True):
        kept = mask.view(-1, *shape.kernel).sum(dim=0).numpy()
        total += layer_energy(shape, EYERISS, kept).relaxed
    assert prefix.used[0] <= result.used[0] == total - floor <= budget - floor


def squeezenet():
    """SqueezeNet 1.0 at 224 x 224: channels of each fire module, and the side of its map."""
    fires = (
        (96, 16, 64, 54), (128, 16, 64, 54), (128, 32, 128, 54), (256, 32, 128, 27),
        (256, 48, 192, 27), (384, 48, 192, 27), (384, 64, 256, 27), (512, 64, 256, 13),
    )  # fmt: skip
    shapes = [LayerShape.conv(3, 96, 7, (224, 224), stride=2)]
    for channels, squeezed, expanded, side in fires:
        shapes += [
            LayerShape.conv(channels, squeezed, 1, (side, side)),
            LayerShape.conv(squeezed, expanded, 1, (side, side)),
            LayerShape.conv(squeezed, expanded, 3, (side, side), padding=1),
        ]
    return (*shapes, LayerShape.conv(512, 1000, 1, (13, 13)))


def test_squeezenet():
    shapes = squeezenet()
    ladders, budget, floor = problem(shapes, 0.4)
    weights = formula_weights(shapes)
    result = allocate(weights, ladders, [budget - floor])
    assert removed(weights, result) == pytest.approx(156.3917, abs=5e-5)
    assert 4096 in result.counts  # layers rest at the kink of the cost
