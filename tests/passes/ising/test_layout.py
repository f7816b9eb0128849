"""Keep-states as rows of bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from energy_model.errors import ArgumentError
from passes.ising.layout import Layout
from passes.structure.groups import ChannelGroup, ChannelGroups

LAYOUT = Layout(("a", "b"), (2, 3))


def groups(*sizes):
    made = [ChannelGroup(n, s, 1, (), (), False, "") for n, s in zip("ab", sizes, strict=False)]
    return ChannelGroups((*made, ChannelGroup("frozen", 4, 1, (), (), True, "why")))


def test_rows_and_states_are_the_same_thing():
    state = {"a": np.array([True, False]), "b": np.array([False, True, True])}
    row = LAYOUT.bits(groups(2, 3), state)
    assert row.tolist() == [True, False, False, True, True]
    again = LAYOUT.state(row)
    assert all(np.array_equal(again[name], state[name]) for name in state)
    assert Layout.of(groups(2, 3)) == LAYOUT
    assert LAYOUT.parts == {"a": slice(0, 2), "b": slice(2, 5)}
    assert LAYOUT.kept(torch.stack([row, ~row])).tolist() == [[1, 2], [1, 1]]
    numbers = LAYOUT.by_group(torch.arange(5))
    assert numbers["b"].tolist() == [2, 3, 4]
    assert LAYOUT.flat(numbers).tolist() == [0, 1, 2, 3, 4]


def test_a_changed_state_does_not_change_the_row():
    row = torch.ones(5, dtype=torch.bool)
    LAYOUT.state(row)["a"][:] = False
    assert row.all()


def test_nothing_to_search():
    empty = Layout.of(groups())
    assert empty == Layout((), ())
    assert empty.parts == {}
    assert empty.kept(torch.zeros(3, 0, dtype=torch.bool)).shape == (3, 0)
    assert empty.bits(groups(), {}).shape == (0,)


@pytest.mark.parametrize("row", [torch.ones(5), torch.ones(4, dtype=torch.bool)])
def test_other_rows_are_refused(row):
    with pytest.raises(ArgumentError, match="keep-state"):
        LAYOUT.state(row)
