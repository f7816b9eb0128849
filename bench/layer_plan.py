"""Integers or float, layer by layer, by measurement on this machine: the choice and its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.layer_borders import layer_borders
from bench.layer_choice import Border, choose_floating, total_time
from bench.layer_times import paired_layer_times


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Times of both forms, and the layers that are faster in float.

    Attributes:
        float_times: Milliseconds of each layer in float.
        integer_times: The same in the integer file.
        borders: What the layers hand on, and what it costs to convert it.
        floating: The layers that should stay in float.
    """

    float_times: Mapping[str, float]
    integer_times: Mapping[str, float]
    borders: tuple[Border, ...]
    floating: frozenset[str]

    def predicted(self, floating: frozenset[str]) -> float:
        """Milliseconds of one inference with these layers in float, by the measured times."""
        return total_time(floating, self.float_times, self.integer_times, self.borders)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "float_ms": dict(self.float_times),
            "integer_ms": dict(self.integer_times),
            "floating": sorted(self.floating),
            "predicted_ms": {
                "float": self.predicted(frozenset(self.float_times)),
                "integer": self.predicted(frozenset()),
                "mixed": self.predicted(self.floating),
            },
        }

    def to_markdown(self) -> str:
        """One row a layer, and the sums."""
        lines = ["| layer | float, us | integer, us | taken |", "| --- | ---: | ---: | --- |"]
        for name, time in self.float_times.items():
            integer = self.integer_times.get(name)
            taken = "float" if name in self.floating else "integer"
            shown = "-" if integer is None else f"{1e3 * integer:.1f}"
            lines.append(f"| {name} | {1e3 * time:.1f} | {shown} | {taken} |")
        sums = [frozenset(self.float_times), frozenset[str](), self.floating]
        told = [f"{1e3 * self.predicted(each):.1f}" for each in sums]
        lines.append(f"| all, with conversions | {told[0]} | {told[1]} | mixed: {told[2]} |")
        return "\n".join([*lines, ""])


def plan_layers(
    float_file: Path | str,
    integer_file: Path | str,
    *,
    float_names: Mapping[str, str] | None = None,
    integer_names: Mapping[str, str] | None = None,
    threads: int = 1,
    batch: int = 1,
    rounds: int = 7,
    options: Mapping[str, str] | None = None,
) -> LayerPlan:
    """Measure both forms of a model layer by layer and choose.

    Args:
        float_file: The float form.
        integer_file: The integer form.
        float_names: Layer by name of its weight, in the float file; see
            `bench.layer_marks.find_layers`.
        integer_names: The same for the integer file.
        threads: Threads inside an operator.
        batch: Samples in one inference.
        rounds: Turns of each file.
        options: Session options.

    Raises:
        ArgumentError: A layer of the integer file has no counterpart in the float file.
        BenchError: A file cannot be read or run.
    """
    setting: dict[str, Any] = {"threads": threads, "batch": batch}
    floats, integers = paired_layer_times(
        [float_file, integer_file],
        names=[float_names, integer_names],
        rounds=rounds,
        options=options,
        **setting,
    )
    borders = layer_borders(float_file, names=float_names, **setting)
    chosen = choose_floating(floats, integers, borders)
    return LayerPlan(floats, integers, borders, chosen)
