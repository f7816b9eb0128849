"""A measured cost model: every layer costs in proportion to its input width times its output width.

    E(s) = a_0 + sum over layers u of a_u * (s_in(u) / S_in(u)) * (s_out(u) / S_out(u))

with widths s in channels (or features), S their values in the full network, and the coefficients
fitted from measurements, so that it holds for any platform and in the unit of the measurements.
Widths that are tied by the network (residual connections) are one variable; the image channels and
the classes do not change and are constants.

Source: Yang, Zhu, Liu, "ECC: Platform-Independent Energy-Constrained Deep Neural Network
Compression via a Bilinear Regression Model", CVPR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy_model.errors import ArgumentError

Widths = Mapping[str, float]
"""Width of each variable, in channels; real numbers above 0."""

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Term:
    """What one layer's cost is proportional to.

    Attributes:
        layer: Name of the layer.
        input_width: The variable of its input width; None where that width never changes.
        output_width: The variable of its output width, which may be the same; None as above.
    """

    layer: str
    input_width: str | None
    output_width: str | None


@dataclass(frozen=True, slots=True)
class BilinearModel:
    """A cost as a function of widths.

    Attributes:
        intercept: a_0, the cost that no width changes, in `unit`.
        coefficients: a_u, the cost of each layer at full widths, in `unit`.
        terms: What each coefficient multiplies, one per layer.
        full_widths: S, each variable's width in the full network, channels.
        unit: Unit of every cost, e.g. `"J"` or `"s"` per inference.

    Raises:
        ArgumentError: The parts do not fit together, or a number is not finite.
    """

    intercept: float
    coefficients: tuple[float, ...]
    terms: tuple[Term, ...]
    full_widths: Mapping[str, int] = field(hash=False)
    unit: str

    def __post_init__(self) -> None:
        check_form(self.terms, self.full_widths)
        if len(self.coefficients) != len(self.terms):
            raise ArgumentError(
                f"{len(self.coefficients)} coefficients for {len(self.terms)} terms",
                where="bilinear model",
                remedy="Give one per term, the intercept apart.",
            )
        if not isinstance(self.unit, str) or not self.unit:
            raise ArgumentError(
                f"the unit is {self.unit!r}",
                where="bilinear model",
                remedy='Name that of the measurements, e.g. "J" or "s".',
            )
        if not all(map(is_finite, (self.intercept, *self.coefficients))):
            raise ArgumentError(
                "a coefficient is not a finite number",
                where="bilinear model",
                remedy="Fit it again, on finite measurements.",
            )
        # Plain values, whatever kind of number came in: they compare, and JSON can hold them.
        widths = {name: int(width) for name, width in self.full_widths.items()}
        object.__setattr__(self, "full_widths", widths)
        object.__setattr__(self, "intercept", float(self.intercept))
        object.__setattr__(self, "coefficients", tuple(map(float, self.coefficients)))
        object.__setattr__(self, "terms", tuple(self.terms))

    def predict(self, widths: Widths) -> float:
        """Cost at these widths, in `unit`.

        Args:
            widths: Every variable's width, channels; not necessarily whole.

        Raises:
            ArgumentError: A name is unknown or missing, or a width is not positive.
        """
        return float(self.predict_many([widths])[0])

    def predict_many(self, rows: Sequence[Widths]) -> NDArray[np.float64]:
        """Costs of many networks at once.

        Args:
            rows: As `predict` takes, one per network.

        Returns:
            Shape `(len(rows),)`, in `unit`.

        Raises:
            ArgumentError: As `predict`.
        """
        products = width_products(self.terms, self.full_widths, rows)
        costs: NDArray[np.float64] = self.intercept + products @ np.array(self.coefficients)
        return costs

    def marginal(self, variable: str, widths: Widths) -> float:
        """Cost of one more channel: the derivative by one width, in `unit` per channel.

        For a layer whose two widths are tied it is the slope, not the step to the next channel.

        Args:
            variable: The width that changes.
            widths: As `predict` takes.

        Raises:
            ArgumentError: `variable` is unknown, or as `predict`.
        """
        if variable not in self.full_widths:
            raise _unknown([variable], self.full_widths, "marginal")
        _shares(self.full_widths, [widths])

        def share(name: str | None) -> float:
            return 1.0 if name is None else widths[name] / self.full_widths[name]

        slope = 0.0
        for term, coefficient in zip(self.terms, self.coefficients, strict=True):
            if term.input_width == variable:
                slope += coefficient * share(term.output_width)
            if term.output_width == variable:
                slope += coefficient * share(term.input_width)
        return slope / self.full_widths[variable]

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object; `from_dict` reads back an equal model."""
        return {
            "config": type(self).__name__,
            "version": _VERSION,
            "unit": self.unit,
            "intercept": self.intercept,
            "full_widths": dict(self.full_widths),
            "terms": [
                {
                    "layer": term.layer,
                    "input_width": term.input_width,
                    "output_width": term.output_width,
                    "coefficient": coefficient,
                }
                for term, coefficient in zip(self.terms, self.coefficients, strict=True)
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BilinearModel:
        """Read what `to_dict` wrote.

        Raises:
            ArgumentError: It is something else, of a newer version, or damaged.
        """
        if (data.get("config"), data.get("version")) != (cls.__name__, _VERSION):
            raise ArgumentError(
                f"this is {data.get('config')!r}, version {data.get('version')!r}",
                where="bilinear model",
                remedy=f"Version {_VERSION} of {cls.__name__} can be read.",
            )
        try:
            terms = [{**term} for term in data["terms"]]
            coefficients = tuple(term.pop("coefficient") for term in terms)
            return cls(
                intercept=data["intercept"],
                coefficients=coefficients,
                terms=tuple(Term(**term) for term in terms),
                full_widths=dict(data["full_widths"]),
                unit=data["unit"],
            )
        except ArgumentError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"a field is missing or malformed: {error}",
                where="bilinear model",
                remedy="Write it again with to_dict.",
            ) from error


def chain(
    names_and_widths: Sequence[tuple[str, int]],
) -> tuple[tuple[Term, ...], dict[str, int]]:
    """The terms of a sequential network, each width named after the layer that produces it.

    `chain([("image", 3), ("conv1", 64), ("conv2", 192), ("fc", 10)])` has the layers conv1, conv2
    and fc, and the variables conv1 and conv2: the image and the classes are constants.

    Args:
        names_and_widths: The input and its channels, then every layer and its full output width.

    Returns:
        Terms and full widths, as `fit_bilinear` and `BilinearModel` take them.

    Raises:
        ArgumentError: Fewer than two entries, a repeated name, or a width that is no count.
    """
    names = [name for name, _ in names_and_widths]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ArgumentError(
            f"{names} are no input and layers with names of their own",
            where="chain",
            remedy="Give the input first, then at least one layer.",
        )
    check_full_widths(dict(names_and_widths))
    full_widths = dict(names_and_widths[1:-1])
    variables = [name if name in full_widths else None for name in names]
    ends = zip(names[1:], variables[:-1], variables[1:], strict=True)
    return tuple(Term(*term) for term in ends), full_widths


def width_products(
    terms: Sequence[Term], full_widths: Mapping[str, int], rows: Sequence[Widths]
) -> NDArray[np.float64]:
    """What the coefficients multiply: (s_in / S_in) * (s_out / S_out).

    Args:
        terms: One per layer.
        full_widths: Each variable's full width, channels.
        rows: The widths of every network.

    Returns:
        Shape `(len(rows), len(terms))`, no unit.

    Raises:
        ArgumentError: A name is unknown or missing, or a width is not positive.
    """
    shares = _shares(full_widths, rows)
    column: dict[str | None, int] = {name: index for index, name in enumerate(full_widths)}
    column[None] = len(full_widths)
    shares = np.column_stack([shares, np.ones(len(rows))])
    inputs = [column[term.input_width] for term in terms]
    outputs = [column[term.output_width] for term in terms]
    products: NDArray[np.float64] = shares[:, inputs] * shares[:, outputs]
    return products


def _shares(full_widths: Mapping[str, int], rows: Sequence[Widths]) -> NDArray[np.float64]:
    """Widths over full widths, checked, shape `(rows, variables)`."""
    for number, row in enumerate(rows):
        if unknown := [name for name in row if name not in full_widths]:
            raise _unknown(unknown, full_widths, f"widths {number}")
        if missing := [name for name in full_widths if name not in row]:
            raise ArgumentError(
                f"no width of {', '.join(missing)}",
                where=f"widths {number}",
                remedy="Give every variable's width.",
            )
        for name, width in row.items():
            if not is_finite(width) or width <= 0:
                raise ArgumentError(
                    f"the width of {name} is {width!r}",
                    where=f"widths {number}",
                    remedy="Give a number of channels above 0.",
                )
    values = [[row[name] / full for name, full in full_widths.items()] for row in rows]
    return np.array(values, dtype=np.float64).reshape(len(rows), len(full_widths))


def check_form(terms: Sequence[Term], full_widths: Mapping[str, int]) -> None:
    """Check that terms and variables make a model.

    Raises:
        ArgumentError: No term, a layer named twice, an unknown variable, or a bad full width.
    """
    check_full_widths(full_widths)
    layers = [term.layer for term in terms]
    if not layers or len(set(layers)) < len(layers):
        raise ArgumentError(
            f"the layers are {layers}",
            where="terms",
            remedy="Give at least one term, and every layer a name of its own.",
        )
    used = {name for term in terms for name in (term.input_width, term.output_width)}
    if unknown := sorted(used - {None, *full_widths}, key=str):
        raise _unknown([str(name) for name in unknown], full_widths, "terms")


def check_full_widths(full_widths: Mapping[str, int]) -> None:
    """Check that every full width is a count of channels.

    Raises:
        ArgumentError: One is not an integer of at least 1.
    """
    for name, width in full_widths.items():
        if not isinstance(width, Integral) or isinstance(width, bool) or width < 1:
            raise ArgumentError(
                f"the full width of {name} is {width!r}",
                where="full_widths",
                remedy="Give an integer of at least 1.",
            )


def is_finite(value: object) -> bool:
    """Whether this is a real number, neither infinite nor NaN."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _unknown(names: Sequence[str], known: Mapping[str, int], where: str) -> ArgumentError:
    return ArgumentError(
        f"unknown width {', '.join(names)}",
        where=where,
        remedy=f"The variables are {', '.join(known) or 'none'}.",
    )
