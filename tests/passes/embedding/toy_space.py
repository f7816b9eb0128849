"""A search space of six layers in a row, small enough for every test, and what is best in it."""

from __future__ import annotations

import math
import random

from passes.architecture.genotype import Genotype
from passes.architecture.sketch import Layer, Sketch, without

LAYERS = 6
WIDTH = 64
GROUPS = ("first", "second", "third")
PAIRS = [(f"layer{i}", f"layer{j}") for i in range(LAYERS) for j in range(i + 2, LAYERS)]
REMOVABLE = [f"layer{i}" for i in range(1, LAYERS - 1)]


def toy_layer(name="a", **fields):
    plain = {"kind": "conv", "kernel": 3, "stride": 1, "dilation": 1, "groups": 1, "area": 64}
    plain |= {"in_width": WIDTH, "out_width": WIDTH, "has_norm": True, "has_act": True} | fields
    weights = plain["in_width"] * plain["out_width"] * plain["kernel"] ** 2
    return Layer(name, **{"params": weights, "macs": weights * plain["area"]} | plain)


class ToySpace:
    """As `passes.architecture.SearchSpace`, without a network."""

    def __init__(self, layers=LAYERS):
        self.count = layers

    def sample(self, rng):
        removed = [name for name in REMOVABLE if rng.random() < 0.4]
        widths = {group: max(1, int((1 - rng.random()) * WIDTH)) for group in GROUPS}
        return self._of(removed, widths, [pair for pair in PAIRS if rng.random() < 0.1])

    def mutate(self, genotype, rng):
        removed, skips = set(genotype.removed), set(genotype.skips)
        widths = self._widths(genotype)
        for _ in range(rng.randint(1, 3)):
            move = rng.random()
            if move < 0.45:
                removed ^= {rng.choice(REMOVABLE)}
            elif move < 0.85:
                group = rng.choice(GROUPS)
                scaled = round(widths[group] * math.exp(rng.gauss(0, 0.35)))
                widths[group] = min(WIDTH, max(1, scaled))
            else:
                skips ^= {rng.choice(PAIRS)}
        return self._of(removed, widths, skips)

    @staticmethod
    def _of(removed, widths, skips):
        narrow = {group: units for group, units in widths.items() if units < WIDTH}
        kept = [pair for pair in skips if pair[1] not in removed]
        return Genotype.of(removed, narrow, kept)

    @staticmethod
    def _widths(genotype):
        return {**dict.fromkeys(GROUPS, WIDTH), **dict(genotype.widths)}

    def sketch(self, genotype):
        widths = self._widths(genotype)
        layers, before = [], 3
        for number in range(LAYERS):
            name, after = f"layer{number}", widths[GROUPS[number // 2]]
            removed = name in genotype.removed
            area = 64 >> (number // 2)
            layer = toy_layer(name, in_width=before, out_width=after, area=area)
            layers.append(without(layer) if removed else layer)
            before = after
        added = tuple((int(a[-1]), int(b[-1])) for a, b in genotype.skips)
        chain = tuple((number, number + 1) for number in range(LAYERS - 1))
        return Sketch(tuple(layers), tuple(sorted({*chain, *added})), tuple(sorted(added)))

    def cost(self, genotype):
        return {"params": sum(layer.params for layer in self.sketch(genotype).layers)}


SPACE = ToySpace()
WHOLE = SPACE.cost(Genotype())["params"]


def toy_gain(costs):
    compression = 1 - costs["params"] / WHOLE
    return compression * (2 - compression)


def toy_score(genotype):
    """The accuracy that is made up: wide and deep networks do better."""
    sketch = SPACE.sketch(genotype)
    capacity = sum(math.log1p(layer.out_width) for layer in sketch.layers if not layer.removed)
    capacity += 0.3 * min(3, len(genotype.skips))
    noise = random.Random(genotype.digest).gauss(0, 0.003)
    return 1 / (1 + math.exp(15 - capacity)) + noise


def toy_reward(genotype):
    return toy_gain(SPACE.cost(genotype)) * toy_score(genotype)
