from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import StorageError
from passes.coding.drafts import Draft, DraftReader

Item = int | bytes | list[int]
ITEMS = st.lists(
    st.one_of(
        st.integers(0, 2**64 - 1),
        st.binary(max_size=9),
        st.lists(st.integers(0, 255), max_size=9),
    ),
    max_size=12,
)


def drafted(items: list[Item]) -> Draft:
    draft = Draft()
    for item in items:
        if isinstance(item, int):
            draft.number(item)
        elif isinstance(item, bytes):
            draft.block(item)
        else:
            draft.symbols(np.array(item, np.uint8))
    return draft


@settings(max_examples=60)
@given(ITEMS, ITEMS)
def test_numbers_blocks_and_symbols_come_back_in_order(
    first: list[Item], second: list[Item]
) -> None:
    draft = drafted(first)
    draft.extend(drafted(second))
    assert draft.bits == drafted(first).bits + drafted(second).bits
    reader, later = DraftReader(draft.finish().finish()), []
    for item in first + second:
        if isinstance(item, int):
            assert reader.number(2**64 - 1) == item
        elif isinstance(item, bytes):
            assert bytes(reader.block()) == item
        else:
            later.append((reader.symbols(len(item)), item))
    reader.decode()
    for found, item in later:
        assert found().tolist() == item


def test_what_nobody_read_is_noticed() -> None:
    data = drafted([5, [1, 2, 3] * 50, b"block"]).finish().finish()
    reader = DraftReader(data)
    reader.number(9)
    reader.symbols(150)
    with pytest.raises(StorageError):
        reader.decode()
    with pytest.raises(StorageError):
        DraftReader(b"")
