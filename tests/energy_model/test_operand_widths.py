from __future__ import annotations

import json

import pytest

from energy_model.errors import ArgumentError
from energy_model.widths import WORDS, Widths


def test_round_trip_through_json() -> None:
    widths = Widths(4, None, 8)
    assert Widths.from_dict(json.loads(json.dumps(widths.to_dict()))) == widths
    assert WORDS.to_dict() == {"weights": None, "inputs": None, "outputs": None}
    assert Widths.from_dict({}) == WORDS == Widths()


@pytest.mark.parametrize("bad", [0, -1, 2.5, "8"])
@pytest.mark.parametrize("name", ["weights", "inputs", "outputs"])
def test_widths_are_positive_integers(name: str, bad: object) -> None:
    with pytest.raises(ArgumentError, match=f"{name} of {bad!r} bits"):
        Widths(**{name: bad})  # type: ignore[arg-type]
