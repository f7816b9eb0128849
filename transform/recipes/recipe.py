"""Recipes: experiments as data, read from YAML, checked, and expanded into cells."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from energy_model.budget import Budget
from energy_model.errors import ArgumentError
from transform.recipes.parts import (
    Cell,
    Cost,
    check_matrix,
    check_names,
    check_stages,
    check_valid,
    mapping_of,
    named,
    read_method,
)
from transform.training.config import TrainConfig

_REQUIRED = ("name", "model", "data", "input", "classes", "budget", "cost")
_TIMES = ("epochs", "batches_per_epoch")
_TEXTS = ("name", "model", "data", "input", "budget", "about", "weights", "hardware")


@dataclass(frozen=True, slots=True)
class Recipe:
    """An experiment.

    Attributes:
        name: Lower-case letters, digits and hyphens.
        model: `package.module:callable`.
        data: A data SPEC.
        input: Shape of one sample, e.g. `1x32x32`.
        classes: Number of classes.
        budget: Of the single run.
        cost: What it costs.
        about: What is measured, for people.
        weights: Trained weights, relative to the data root; `""` starts at random.
        method: Name (`name`), label in tables (`label`), training fields of its own (`train`), and
            fields of its configuration.
        train: Fields of `TrainConfig`, or `None` for one shot.
        seed: Of the single run.
        valid: The part of the data that choices are made on: always `"valid"`.
        hardware: Profile of the energy model.
        layers: Rules for single layers.
        stages: What is done before, one after another, each going on from the result of the last:
            `budget`, and `method` and fields of `train` where they differ.
        matrix: Lists by `budget`, `method`, `seed` or `train.FIELD`; their product is the matrix.
    """

    name: str
    model: str
    data: str
    input: str
    classes: int
    budget: str
    cost: Cost
    about: str = ""
    weights: str = ""
    method: Mapping[str, Any] = field(default_factory=lambda: {"name": "energy"})
    train: Mapping[str, Any] | None = None
    seed: int = 0
    valid: str = "valid"
    hardware: str = "eyeriss"
    layers: Mapping[Any, Any] | None = None
    stages: Sequence[Mapping[str, Any]] = ()
    matrix: Mapping[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise ArgumentError(f"{getattr(self, name)!r} is no text", where=name)
        check_names(self.name, self.input, self.classes, self.weights)
        check_valid(self.valid)
        check_matrix(self.matrix)
        check_stages(self.stages)
        self.earlier(0)
        names = [cell.folder for cell in self.cells()]
        if len(set(names)) < len(names):
            raise ArgumentError("two cells are the same", where="matrix", remedy="Keep one.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Read what the YAML file holds.

        Raises:
            ArgumentError: An unknown, missing or bad field; it is named.
        """
        known = [each.name for each in fields(cls)]
        if unknown := sorted(set(map(str, values)) - set(known)):
            raise ArgumentError(
                "there is no such field",
                where=", ".join(unknown),
                remedy=f"The fields are {', '.join(known)}.",
            )
        if missing := [name for name in _REQUIRED if name not in values]:
            raise ArgumentError(
                "the field is missing", where=missing[0], remedy="Every recipe has it."
            )
        cost = mapping_of(values["cost"], "cost")
        if unknown := sorted(set(cost) - {"minutes", "needs"}):
            raise ArgumentError(
                "there is no such field",
                where=f"cost.{unknown[0]}",
                remedy="The fields are minutes, needs.",
            )
        return cls(**{**values, "cost": Cost(**cost)})

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object, which `from_dict` reads."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | {"cost": {"minutes": self.cost.minutes, "needs": self.cost.needs}}

    def single(self) -> Cell:
        """The run without the matrix."""
        return self._cell(0, {})

    def cells(self) -> tuple[Cell, ...]:
        """Every cell of the matrix, in the order of its lists; the last list runs fastest."""
        axes = list(self.matrix.items())
        product = itertools.product(*(values for _, values in axes))
        names = [name for name, _ in axes]
        return tuple(
            self._cell(number, dict(zip(names, values, strict=True)))
            for number, values in enumerate(product)
        )

    def earlier(self, seed: int) -> tuple[Cell, ...]:
        """The stages that come before a cell.

        Args:
            seed: That of the cell.
        """
        return tuple(
            self._cell(
                number,
                {
                    "budget": stage["budget"],
                    "method": stage.get("method", self.method),
                    "seed": seed,
                    **{f"train.{k}": v for k, v in stage.get("train", {}).items()},
                },
            )
            for number, stage in enumerate(self.stages)
        )

    def dry(self) -> Recipe:
        """The same on a few random numbers: one batch, one epoch, untrained weights."""
        train = None if self.train is None else {**self.train, "epochs": 1, "batches_per_epoch": 1}
        matrix = {
            name: [_untimed(value) for value in values] if name == "method" else values
            for name, values in self.matrix.items()
            if name.removeprefix("train.") not in _TIMES
        }
        data = f"fake:{self.input}:{self.classes}:batch=2"
        method = _untimed(self.method)
        stages = [
            {**stage, "train": {k: v for k, v in stage.get("train", {}).items() if k not in _TIMES}}
            for stage in self.stages
        ]
        changed = {"method": method, "train": train, "matrix": matrix, "stages": stages}
        return replace(self, data=data, weights="", **changed)

    def _cell(self, number: int, chosen: Mapping[str, Any]) -> Cell:
        budget = str(chosen.get("budget", self.budget))
        with named("budget"):
            Budget.parse(budget)
        method, label, own = read_method(chosen.get("method", self.method))
        seed = chosen.get("seed", self.seed)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ArgumentError(f"{seed!r} is not a seed", where="seed", remedy="From 0.")
        return Cell(number, budget, method, label, seed, self._train(chosen, own))

    def _train(self, chosen: Mapping[str, Any], own: Mapping[str, Any]) -> TrainConfig | None:
        varied = {k.partition(".")[2]: v for k, v in chosen.items() if k.startswith("train.")}
        own = {**own, **varied}
        if self.train is None and not own:
            return None
        with named("train"):
            return TrainConfig.from_dict({**mapping_of(self.train or {}, "train"), **own})


def _untimed(method: Any) -> Any:
    """A method without its own number of epochs."""
    if not isinstance(method, Mapping) or not isinstance(method.get("train"), Mapping):
        return method
    train = {key: value for key, value in method["train"].items() if key not in _TIMES}
    return {**method, "train": train}


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        name: A YAML file, or the name of one that comes with the compiler.

    Raises:
        ArgumentError: There is no such recipe, it is no YAML, or a field is bad.
    """
    import yaml

    path = _find(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ArgumentError(
            f"the recipe cannot be read: {reason}",
            where=str(path),
            remedy="Give a YAML file; `transform run --help` shows one.",
        ) from error
    with named(str(path)):
        return Recipe.from_dict(mapping_of(values, "the recipe"))


def recipe_names() -> dict[str, Path]:
    """The recipes that come with the compiler, by name."""
    import bench

    folder = Path(bench.__path__[0]) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _find(name: str | Path) -> Path:
    path, known = Path(name), recipe_names()
    if path.suffix not in (".yaml", ".yml") and not path.is_file() and str(name) in known:
        return known[str(name)]
    if not path.is_file():
        raise ArgumentError(
            f"there is no recipe {str(name)!r}",
            where="RECIPE",
            remedy=f"Give a YAML file, or one of {', '.join(known)}.",
        )
    return path


def select_cells(recipe: Recipe, matrix: bool, select: int | None) -> tuple[Cell, ...]:
    """The cells that are to be run.

    Args:
        recipe: The recipe.
        matrix: All cells of the matrix rather than the single run.
        select: Only this cell of the matrix.

    Raises:
        ArgumentError: There is no such cell.
    """
    if select is None:
        return recipe.cells() if matrix else (recipe.single(),)
    cells = recipe.cells()
    if not 0 <= select < len(cells):
        raise ArgumentError(
            f"there is no cell {select}",
            where="--select",
            remedy=f"The matrix has cells 0 to {len(cells) - 1}; --list shows them.",
        )
    return (cells[select],)
