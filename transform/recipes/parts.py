"""The parts of a recipe: its cost, its cells, and what a field may hold."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from energy_model.errors import ArgumentError, CompressionError
from passes.methods.chain import chain_spec
from passes.methods.config import MethodConfig
from passes.methods.registry import find_method
from transform.training.config import TrainConfig
from transform.training.fit import run_identity

MAX_MINUTES = 25
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_AXES = ("budget", "method", "seed")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a recipe costs.

    Attributes:
        minutes: Of one cell on 2 cores; at most 25. `None` for what needs more than that.
        needs: What it needs that not everybody has: an accelerator, or data that are not free.
    """

    minutes: float | None = None
    needs: str = ""

    def __post_init__(self) -> None:
        real = isinstance(self.minutes, int | float) and not isinstance(self.minutes, bool)
        minutes = self.minutes if real and self.minutes is not None else math.nan
        if self.minutes is not None and not 0 < minutes <= MAX_MINUTES:
            raise ArgumentError(
                f"{self.minutes!r} is not a number of minutes up to {MAX_MINUTES}",
                where="cost.minutes",
                remedy="Give the minutes of one cell on 2 cores, or say in `needs` what it takes.",
            )
        if not isinstance(self.needs, str) or (self.minutes is None and not self.needs):
            raise ArgumentError(
                "the recipe does not say what it costs",
                where="cost",
                remedy="Give `minutes` of one cell on 2 cores, or `needs: an accelerator`.",
            )


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: a budget, a method, a seed and a way to train.

    Attributes:
        number: Position in the matrix, from 0.
        budget: What is asked.
        method: The method's configuration.
        label: What the method is called in a table.
        seed: Seed of all randomness.
        train: How it is trained; `None` for one shot.
    """

    number: int
    budget: str
    method: MethodConfig
    label: str
    seed: int
    train: TrainConfig | None

    @property
    def folder(self) -> str:
        """Name of the cell's folder: the same whatever else the matrix holds."""
        words = re.sub(r"[^a-z0-9.]+", "-", f"{self.label} {self.budget}".lower()).strip("-")
        return f"{words}-seed-{self.seed}-{run_identity(self.to_dict())[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object, without the position: that depends on the matrix."""
        return {
            "budget": self.budget,
            "method": self.method.to_dict(),
            "label": self.label,
            "seed": self.seed,
            "train": None if self.train is None else self.train.to_dict(),
        }

    def __str__(self) -> str:
        return f"{self.number:>3}  {self.label}, {self.budget}, seed {self.seed}"


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put the name of a field before the place that an error of it names."""
    try:
        yield
    except CompressionError as error:
        where = f"{name}: {error.where}" if error.where else name
        raise ArgumentError(error.what, where=where, remedy=error.remedy) from error


def read_method(values: Any) -> tuple[MethodConfig, str, Mapping[str, Any]]:
    """A method's configuration, what it is called in tables, and how it alone is trained.

    Several methods that work one after another are written as `chain: [{name: ...}, ...]`.
    """
    given = dict(mapping_of(values, "method"))
    if "chain" in given:
        return _read_chain(given)
    name, label = str(given.pop("name", "")), given.pop("label", None)
    train = mapping_of(given.pop("train", {}), "method.train")
    with named("method"):
        spec, _ = find_method(name)
        config = spec.config.from_dict(given)
    told = ", ".join(f"{key} {value}" for key, value in given.items())
    return config, str(label or (f"{name} ({told})" if told else name)), train


def _read_chain(given: dict[str, Any]) -> tuple[MethodConfig, str, Mapping[str, Any]]:
    stages, label = given.pop("chain"), given.pop("label", None)
    train = mapping_of(given.pop("train", {}), "method.train")
    if not isinstance(stages, list) or given:
        raise ArgumentError(
            f"{stages!r} with {sorted(given)} is no chain of methods",
            where="method.chain",
            remedy="Write chain: [{name: l2}, {name: quantize}], and fields within its stages.",
        )
    found = [read_method(stage) for stage in stages]
    with named("method.chain"):
        _, config = chain_spec([config for config, _, _ in found])
    return config, str(label or " + ".join(name for _, name, _ in found)), train


def mapping_of(values: Any, where: str) -> Mapping[str, Any]:
    """Raise unless the value is a mapping whose keys are texts."""
    if isinstance(values, Mapping) and all(isinstance(key, str) for key in values):
        return values
    raise ArgumentError(
        f"{values!r} is no mapping of names to values", where=where, remedy="Write key: value."
    )


def check_names(name: str, shape: str, classes: Any, weights: str) -> None:
    """Raise for a bad name, shape of a sample, number of classes or path of the weights."""
    if not _NAME.fullmatch(name):
        raise ArgumentError(f"{name!r} is not lower-case letters, digits and hyphens", where="name")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise ArgumentError(
            f"{shape!r} is not a shape", where="input", remedy="One sample: 1x32x32."
        )
    if type(classes) is not int or classes < 1:
        raise ArgumentError(f"{classes!r} is no number of classes", where="classes")
    if Path(weights).is_absolute() or ".." in Path(weights).parts:
        raise ArgumentError(
            f"{weights!r} leaves the data root",
            where="weights",
            remedy="Give a path relative to the data root.",
        )


def check_valid(valid: Any) -> None:
    """Raise unless choices are made on the validation part."""
    if valid == "valid":
        return
    raise ArgumentError(
        f"{valid!r} cannot be what choices are made on",
        where="valid",
        remedy="Nothing is ever selected on test data, or on what was trained on: leave `valid` "
        "out; it is a part of the training data that is held out.",
    )


def check_matrix(matrix: Any) -> None:
    """Raise unless every entry is a list, by the name of what can be varied."""
    allowed = {*_AXES, *(f"train.{each.name}" for each in fields(TrainConfig))}
    for name, values in mapping_of(matrix, "matrix").items():
        if name not in allowed:
            raise ArgumentError(
                "this cannot be varied",
                where=f"matrix.{name}",
                remedy=f"Vary {', '.join(_AXES)} or train.FIELD.",
            )
        if not isinstance(values, list) or not values:
            raise ArgumentError(f"{values!r} is no list of values", where=f"matrix.{name}")


def check_stages(stages: Any) -> None:
    """Raise unless every stage has a budget, and no more than a stage can have."""
    if not isinstance(stages, list | tuple):
        raise ArgumentError(f"{stages!r} is no list", where="stages", remedy="Write - budget: ...")
    for number, stage in enumerate(stages):
        where = f"stages[{number}]"
        unknown = sorted(set(mapping_of(stage, where)) - {"budget", "method", "train"})
        if unknown or "budget" not in stage:
            raise ArgumentError(
                f"there is no such field: {', '.join(unknown)}" if unknown else "no budget",
                where=where,
                remedy="A stage has a budget, and may have a method and fields of train.",
            )
        mapping_of(stage.get("train", {}), f"{where}.train")
