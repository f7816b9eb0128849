"""The configuration refuses what makes no sense, and survives storage."""

from __future__ import annotations

from typing import Any

import pytest

from energy_model.errors import ArgumentError
from passes.reconstruct.config import Reconstruction


@pytest.mark.parametrize(
    "wrong",
    [
        {"batches": 0},
        {"batches": 1.5},
        {"batches": True},
        {"damping": -1.0},
        {"damping": float("nan")},
        {"damping": float("inf")},
        {"damping": "much"},
        {"weights": 1},
        {"batch_norm": None},
    ],
)
def test_what_is_not_allowed_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        Reconstruction(**wrong)


def test_it_survives_storage() -> None:
    config = Reconstruction(batches=3, damping=0, batch_norm=False)
    assert Reconstruction.from_dict(config.to_dict()) == config
