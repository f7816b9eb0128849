"""Methods that work one after another, as a recipe writes them."""

from __future__ import annotations

from typing import Any

import pytest

from energy_model.errors import ArgumentError
from passes.methods.chain import Chain
from passes.methods.quantize_config import Quantize
from passes.methods.structured_config import L2Channels
from transform.recipes.parts import read_method


def test_a_chain_is_a_list_of_methods() -> None:
    stages = [{"name": "l2", "scope": "layer"}, {"name": "quantize", "weights": 4}]
    config, label, train = read_method({"chain": stages, "train": {"epochs": 3}})
    assert isinstance(config, Chain)
    assert config.stages == (L2Channels(scope="layer"), Quantize(weights=4))
    assert label == "l2 (scope layer) + quantize (weights 4)"
    assert train == {"epochs": 3}
    assert read_method({"chain": stages, "label": "both"})[1] == "both"


@pytest.mark.parametrize(
    "values",
    [
        {"chain": "l2"},
        {"chain": [{"name": "l2"}]},
        {"chain": [{"name": "l2"}, {"name": "quantize"}], "weights": 4},
        {"chain": [{"name": "quantize"}, {"name": "l2"}]},
    ],
)
def test_other_chains_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="chain"):
        read_method(values)
