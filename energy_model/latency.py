"""Latency of a network from its widths: the sum of what its layers take, each measured.

    T(s) = rest + scale * sum over layers u of t_u(s_in(u), s_out(u))

with widths s in channels. The time t_u of a layer is an affine-bilinear function of its two widths,
a + b in + c out + d in out, or looked up among the widths at which it was measured. A runtime
computes channels in vectors, and takes another, slower way where they do not fill whole ones, so
that fewer channels may take longer: then, more such functions are added. What the layers of a
profile add up to is calibrated to the time of whole networks, as a profiler costs time itself.

Sources: Yang, Zhu, Liu, "ECC", CVPR 2019 (bilinear); Yang et al., "NetAdapt", ECCV 2018 (lookup).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from energy_model.bilinear import is_finite
from energy_model.errors import ArgumentError

LayerWidths = Mapping[str, tuple[int, int]]
"""Input and output channels (or features) of every layer, by name."""

_VERSION = 1
_NEAREST = 4

Bilinear = tuple[float, float, float, float]
"""a, b, c, d of a + b in + c out + d in out: seconds, and seconds per channel, or per product."""

_NOTHING: Bilinear = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Seconds of one layer by its widths.

    Attributes:
        coefficients: The time at widths that fill whole vectors; each at least 0.
        step: Channels in a vector; 1 for none.
        partial_inputs: What is added where the inputs do not fill whole vectors.
        partial_outputs: What is added where the outputs do not.
        points: Measured (in, out, seconds), each pair of widths once. Where there are any, the
            time is looked up: exactly at these widths; elsewhere, the time above is corrected as it
            has to be at the nearest of them, the nearer ones counting more. Widths of which one
            fills whole vectors and the other does not are far from each other.

    Raises:
        ArgumentError: A coefficient is negative or not finite, the step no count, or a point no
            measurement.
    """

    coefficients: Bilinear
    step: int = 1
    partial_inputs: Bilinear = _NOTHING
    partial_outputs: Bilinear = _NOTHING
    points: tuple[tuple[int, int, float], ...] = ()

    def __post_init__(self) -> None:
        for part in (self.coefficients, self.partial_inputs, self.partial_outputs):
            if len(part) != 4 or not all(is_finite(value) and value >= 0 for value in part):
                raise ArgumentError(
                    f"{part} are no coefficients of a time",
                    where="layer time",
                    remedy="Give four finite numbers of at least 0.",
                )
        if isinstance(self.step, bool) or not isinstance(self.step, int) or self.step < 1:
            raise ArgumentError(
                f"a step of {self.step!r}", where="layer time", remedy="Give a count of channels."
            )
        positive = all(is_finite(x) and x > 0 for point in self.points for x in point)
        if self.points and not (positive and any(self.coefficients)):
            raise ArgumentError(
                "a measured time, its widths, or all that they are to be corrected by, is not a "
                "positive number",
                where="layer time",
                remedy="Leave out what could not be measured.",
            )

    def seconds(self, inputs: int, outputs: int) -> float:
        """Time at these widths, channels."""
        trend = self._trend(inputs, outputs)
        if not self.points:
            return trend
        table = np.array(self.points)
        widths, own = table[:, :2], np.array((inputs, outputs))
        differing = (widths % self.step == 0) != (own % self.step == 0)
        apart = np.hypot(*((widths - own) / widths.max(axis=0)).T)
        distance = apart + np.count_nonzero(differing, axis=1)
        nearest = np.argsort(distance, kind="stable")[:_NEAREST]
        if distance[nearest[0]] == 0:
            return float(table[nearest[0], 2])
        ratios = [self.points[i][2] / self._trend(*self.points[i][:2]) for i in nearest]
        return trend * float(np.average(ratios, weights=distance[nearest] ** -2))

    def _trend(self, inputs: int, outputs: int) -> float:
        parts = [self.coefficients]
        if inputs % self.step:
            parts.append(self.partial_inputs)
        if outputs % self.step:
            parts.append(self.partial_outputs)
        return sum(a + b * inputs + c * outputs + d * inputs * outputs for a, b, c, d in parts)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How well a model predicts networks that it was not fitted to.

    Attributes:
        median: Median of |predicted - measured| / measured.
        worst: The largest of these.
        networks: How many were predicted.
    """

    median: float
    worst: float
    networks: int

    def __str__(self) -> str:
        return f"median {self.median:.1%}, worst {self.worst:.1%} on {self.networks} networks"


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Predicts the latency of a network from the widths of its layers.

    Attributes:
        layers: Time of every layer as profiled, by its name.
        rest: Seconds that belong to no layer.
        scale: Of the layers' sum, what it is in a run without a profiler.
        held_out: Its error on networks that it was not fitted to; `None` if nobody measured it.
        about: Machine, runtime, threads and batch of the measurements, for people.

    Raises:
        ArgumentError: No layer, or a number that is negative or not finite.
    """

    layers: Mapping[str, LayerTime] = field(hash=False)
    rest: float = 0.0
    scale: float = 1.0
    held_out: HeldOut | None = None
    about: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        numbers = (self.rest, self.scale)
        if not self.layers or not all(is_finite(x) and x >= 0 for x in numbers):
            raise ArgumentError(
                f"{len(self.layers)} layers, {self.rest!r} s of their own and a scale of "
                f"{self.scale!r} make no model",
                where="latency model",
                remedy="Fit it to finite measurements of at least one layer.",
            )

    def layer_seconds(self, layer: str, inputs: int, outputs: int) -> float:
        """What a layer contributes at these widths, seconds.

        Raises:
            ArgumentError: It has no such layer.
        """
        if layer not in self.layers:
            raise ArgumentError(
                f"no time of layer {layer!r} was measured",
                where="latency model",
                remedy=f"Its layers are {', '.join(self.layers)}.",
            )
        return self.scale * self.layers[layer].seconds(inputs, outputs)

    def predict(self, widths: LayerWidths) -> float:
        """Seconds of one inference.

        Args:
            widths: Of every layer of the model; others have no effect.

        Raises:
            ArgumentError: A layer is missing.
        """
        missing = [name for name in self.layers if name not in widths]
        if missing:
            raise ArgumentError(
                f"no widths of {', '.join(missing)}",
                where="latency model",
                remedy="Give input and output widths of every layer.",
            )
        return self.rest + sum(self.layer_seconds(name, *widths[name]) for name in self.layers)

    def anchored(self, widths: LayerWidths, seconds: float) -> LatencyModel:
        """The same model in proportion, such that one network takes what it was measured to take.

        Networks are measured side by side when a model is fitted, a single file at another time
        and alone; the machine is not equally fast at both.

        Args:
            widths: Of every layer of the measured network.
            seconds: What it took.

        Raises:
            ArgumentError: A layer is missing.
        """
        predicted = self.predict(widths)
        factor = seconds / predicted if predicted > 0 else 1.0
        return replace(self, rest=factor * self.rest, scale=factor * self.scale)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object; `from_dict` reads back an equal model."""
        held_out = self.held_out
        return {
            "config": type(self).__name__,
            "version": _VERSION,
            "unit": "s",
            "rest": self.rest,
            "scale": self.scale,
            "held_out": None
            if held_out is None
            else {name: getattr(held_out, name) for name in HeldOut.__slots__},
            "about": dict(self.about),
            "layers": {
                name: {
                    "coefficients": list(time.coefficients),
                    "step": time.step,
                    "partial_inputs": list(time.partial_inputs),
                    "partial_outputs": list(time.partial_outputs),
                    "points": [list(point) for point in time.points],
                }
                for name, time in self.layers.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyModel:
        """Read what `to_dict` wrote.

        Raises:
            ArgumentError: It is something else, of a newer version, or damaged.
        """
        if (data.get("config"), data.get("version")) != (cls.__name__, _VERSION):
            raise ArgumentError(
                f"this is {data.get('config')!r}, version {data.get('version')!r}",
                where="latency model",
                remedy=f"Version {_VERSION} of {cls.__name__} can be read.",
            )
        try:
            layers = {
                name: LayerTime(
                    tuple(row["coefficients"]),
                    row["step"],
                    tuple(row["partial_inputs"]),
                    tuple(row["partial_outputs"]),
                    tuple((i, o, t) for i, o, t in row["points"]),
                )
                for name, row in data["layers"].items()
            }
            held_out = data["held_out"]
            return cls(
                layers,
                data["rest"],
                data["scale"],
                None if held_out is None else HeldOut(**held_out),
                dict(data["about"]),
            )
        except ArgumentError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"a field is missing or malformed: {error}",
                where="latency model",
                remedy="Write it again with to_dict.",
            ) from error
