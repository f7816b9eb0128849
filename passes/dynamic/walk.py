"""How active connections move beside the optimizer's steps, as data; see `deep_r`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from energy_model.config import Config
from passes.dynamic.deep_r import temperature_of
from passes.dynamic.schedule import Values, is_real, read_points

Noise = Literal["weights", "gradient"]
Signs = Literal["fixed", "first_update"]
_NOISES = ("weights", "gradient")
_SIGNS = ("fixed", "first_update")
_OF_THE_SCRIPT = temperature_of(sigma=1e-5, eta=0.5)


@dataclass(frozen=True)
class Walk(Config):
    """A random walk of the active connections, until the rule's schedule stops.

    The defaults are the original (Bellec et al., ICLR 2018) with the noise and the penalty of its
    authors' script, which adds `eta N(0, sigma)` with `eta = 0.5` and `sigma = 1e-5`: as a
    temperature `eta sigma^2 / 2 = 2.5e-11`. There the noise and `l1` shrink what is not held up
    by gradients; the gradients do most of the rewiring. The variant of Mostafa and Wang, ICML 2019,
    is `Walk(noise="gradient", signs="first_update", eta=0.01, temperature={0: 1e-5, 25: 1e-8, 80:
    1e-12, 140: 1e-15})` for their 200 epochs on CIFAR-10.

    Attributes:
        noise: What it is added to: the `"weights"` after every step of the optimizer, or the
            `"gradient"` before it, so that the learning rate scales it and momentum keeps it.
        signs: Of a connection, whose weight ends it by taking the other: `"fixed"`, drawn once, or
            `"first_update"`, that of its weight after the first update that it gets.
        eta: Of the noise, `sqrt(2 eta T)`, and of the shrinkage, `eta l1`; `None` is the learning
            rate of the step.
        temperature: T, or `{first epoch: T}` from epoch 0 on; stored as pairs.
        l1: Strength alpha of the L1 penalty on the active connections; with noise on the gradient
            its own gradient, `alpha sign(w)`, is added there.

    Raises:
        ArgumentError: A value is not allowed.
    """

    noise: Noise = "weights"
    signs: Signs = "fixed"
    eta: float | None = None
    temperature: Values = _OF_THE_SCRIPT
    l1: float = 1e-5

    def __post_init__(self) -> None:
        self._require("noise", self.noise in _NOISES, f"one of {_NOISES}")
        self._require("signs", self.signs in _SIGNS, f"one of {_SIGNS}")
        for field in ("eta", "l1"):
            value = getattr(self, field)
            good = (value is None and field == "eta") or (is_real(value) and value >= 0)
            self._require(field, good, "a number from 0")
        points = read_points(self.temperature, "Walk.temperature")
        good = points[0][0] == 0 and all(value >= 0 for _, value in points)
        self._require("temperature", good, "numbers from 0, from epoch 0 on")
        object.__setattr__(self, "temperature", points)
