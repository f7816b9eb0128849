"""The search for the budget of bits whose archive fills a limit, on sizes given by formulas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_model.budget import Budget
from energy_model.errors import InfeasibleBudget
from energy_model.resolved import ResolvedLimit
from passes.methods.joint.archive_fit import ArchiveFit

REST = 100


class Formula(ArchiveFit):
    """Archives that take what a function of the budget says."""

    def __init__(self, size):
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "asked", [])

    def weights_of(self, solution):
        return self.size(solution) - REST

    def bytes_of(self, solution):
        self.asked.append(solution)
        return self.size(solution)


def fitted(size, budget, maximum):
    [limit] = Budget.parse(f"archive<={maximum} B")
    fit = Formula(size)
    solution, found = fit.fit(lambda bits: bits, budget, ResolvedLimit(limit, 10**6, maximum))
    assert solution == found.budget
    assert size(found.budget) == found.bytes <= maximum
    return found.bytes, fit.asked


@pytest.mark.parametrize("factor", [0.01, 0.5, 0.9, 1.1, 2, 100])
@pytest.mark.parametrize("power", [0.7, 1.0, 1.3])
def test_a_smooth_size_is_filled(factor, power):
    def size(bits):
        return REST + int((bits / 8) ** power)

    budget = int(8 * 3000 ** (1 / power) * factor)
    found, asked = fitted(size, budget, REST + 3000)
    assert found >= 0.96 * (REST + 3000)
    assert len(asked) <= 28


def test_a_plateau_above_the_limit_is_left_downwards():
    """Where the smallest weights are rounded to zero, fewer of them change nothing."""

    def size(bits):
        return REST + (1000 if 5600 < bits < 16000 else bits // 8)

    found, _ = fitted(size, 15000, REST + 990)
    assert found >= 0.6 * 700


def test_a_plateau_below_the_limit_is_no_reason_to_go_on():
    found, asked = fitted(lambda bits: REST + min(bits // 8, 500), 100_000, REST + 990)
    assert found == REST + 500
    assert len(asked) == 2


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 10**5), min_size=1, max_size=30),
    st.integers(REST, 10**5),
)
def test_any_growing_size_ends_within_the_limit(budget, steps, maximum):
    ordered = sorted(steps)

    def size(bits):
        return REST + sum(step for step in ordered if step < bits)

    fitted(size, budget, maximum)


def test_nothing_is_left_only_where_nothing_else_fits():
    found, _ = fitted(lambda bits: REST + 50 * (bits > 0), 10**6, REST + 49)
    assert found == REST
    trials = []

    def size(bits):
        trials.append(bits)
        return REST + bits

    with pytest.raises(InfeasibleBudget, match="100 remain"):
        fitted(size, 10**6, REST - 1)
    assert set(trials) == {10**6, 0}  # what cannot be reached is known after the first one
