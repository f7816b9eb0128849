"""Seeds out of numbers and words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from passes.derived_seed import derived_seed


def test_a_value_that_must_never_change():
    # A resumed search derives it again: the first 63 bits of the sha256 of '[0, "student", 3]'.
    assert derived_seed(0, "student", 3) == 2237984824852351901


def test_parts_are_kept_apart():
    assert (
        len({derived_seed(1, 23), derived_seed(12, 3), derived_seed("1", 23), derived_seed(1)}) == 4
    )


@given(st.lists(st.integers() | st.text(), max_size=4))
def test_it_suits_torch_numpy_and_sqlite(parts):
    assert 0 <= derived_seed(*parts) < 2**63
    assert derived_seed(*parts) == derived_seed(*parts)
