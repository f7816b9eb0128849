"""When rules act and by how much: the published schedules, and every form that is refused."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError
from passes.dynamic.schedule import Clock, Due, Piecewise, Schedule, read_points

WRN = {0: 100, 25: 200, 80: 400, 140: 800}
RESNET = {0: 1000, 25: 2000, 50: 4000, 75: 8000}


def by_definition(schedule, clock):
    """The rule of the paper, step by step."""
    found = []
    for step in range(clock.steps):
        epoch = step // clock.epoch_steps
        period = [p for first, p in schedule.periods if first <= epoch][-1]
        stop = schedule.stop_epoch
        before = epoch < stop if stop is not None else True
        if schedule.stop_share is not None:
            before = step < schedule.stop_share * clock.steps
        if schedule.unit == "steps":
            now = step % period == 0 and (step != 0 or schedule.step_zero)
        else:
            last_of_epoch = step % clock.epoch_steps == clock.epoch_steps - 1
            now = last_of_epoch and (epoch + 1) % period == 0 and epoch != clock.epochs - 1
        if now and before:
            found.append(step)
    return found


def test_the_published_runs_have_their_events():
    wrn = Schedule(WRN, stop_epoch=190, cells=20_000)
    assert len(list(wrn.events(Clock(200, 500)))) == 367
    resnet = Schedule(RESNET, stop_epoch=95, cells=400_000)
    assert len(list(resnet.events(Clock(100, 5005)))) == 232


def test_yaml_as_the_authors_write_it():
    text = yaml.safe_load("[{0: 0.1}, {60: 0.02}, {120: 0.004}]")
    rate = Piecewise(text)
    assert rate == Piecewise(yaml.safe_load("{0: 0.1, 60: 0.02, 120: 0.004}"))
    assert [rate.at(epoch) for epoch in (0, 59, 60, 119, 120, 500)] == [
        0.1, 0.1, 0.02, 0.02, 0.004, 0.004,
    ]  # fmt: skip
    assert Piecewise(3).at(7) == 3


def test_nothing_is_in_force_before_the_first_key():
    with pytest.raises(ArgumentError, match="epoch 4"):
        Piecewise({5: 1.0}).at(4)


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        "100",
        {0: "100"},
        {0: math.nan},
        {-1: 5},
        {0.5: 5},
        {"0": 5},
        [{0: 1}, {0: 2}],
        [1, 2],
        [[0, 1, 2]],
        True,
    ],
)
def test_values_over_epochs_that_are_none(value):
    with pytest.raises(ArgumentError, match="not a value over epochs"):
        read_points(value, "here")


@settings(max_examples=150)
@given(
    st.dictionaries(st.integers(1, 8), st.integers(1, 12), max_size=3),
    st.integers(1, 12),
    st.sampled_from(["steps", "epochs"]),
    st.one_of(st.none(), st.integers(0, 9), st.floats(0, 1)),
    st.booleans(),
    st.integers(1, 9),
    st.integers(1, 7),
)
def test_events_are_those_of_the_definition(later, first, unit, stop, zero, epochs, length):
    stops = {"stop_share": stop} if isinstance(stop, float) else {"stop_epoch": stop}
    schedule = Schedule({0: first, **later}, unit=unit, step_zero=zero, **stops)
    clock = Clock(epochs, length)
    expected = by_definition(schedule, clock)
    assert list(schedule.events(clock)) == expected
    due = [step for step in range(clock.steps) if schedule.due(step, clock) is not None]
    assert due == expected


def test_every_epoch_but_the_last():
    schedule = Schedule(1, unit="epochs", share=0.3)
    assert list(schedule.events(Clock(4, 10))) == [9, 19, 29]


def test_every_step_with_and_without_step_zero():
    clock = Clock(1, 4)
    assert list(Schedule(1).events(clock)) == [1, 2, 3]
    assert list(Schedule(1, step_zero=True).events(clock)) == [0, 1, 2, 3]


def test_the_stop_is_exclusive():
    clock = Clock(10, 10)
    assert list(Schedule(10, stop_epoch=3).events(clock)) == [10, 20]
    assert list(Schedule(10, stop_share=0.31).events(clock)) == [10, 20, 30]
    assert list(Schedule(10, stop_share=0.3).events(clock)) == [10, 20]
    assert list(Schedule(10, stop_epoch=99).events(clock))[-1] == 90


def amounts(clock, **options):
    schedule = Schedule(1, step_zero=True, **options)
    return [schedule.due(step, clock) for step in range(clock.steps)]


def test_cosine_is_rigls():
    clock = Clock(10, 10)
    found = amounts(clock, share=0.3, decay="cosine", stop_share=0.75)
    for step in range(75):
        expected = 0.3 / 2 * (1 + math.cos(math.pi * step / 75))
        assert math.isclose(found[step].share, expected, abs_tol=1e-15)
    assert found[75:] == [None] * 25


def test_linear_and_exponential_decay_to_their_end():
    clock = Clock(1, 10)
    linear = [due.cells for due in amounts(clock, cells=100, decay="linear", end=0.5)]
    assert linear == pytest.approx([100 - 5 * step for step in range(10)])
    exponential = [due.share for due in amounts(clock, share=0.5, decay="exponential", end=0.01)]
    assert exponential == pytest.approx([0.5 * 0.01 ** (step / 10) for step in range(10)])
    constant = [due.cells for due in amounts(clock, cells=600)]
    assert constant == [600] * 10


def test_amounts_as_whole_cells():
    assert Due(cells=12.6).of(100) == 13
    assert Due(cells=600).of(100) == 100
    assert Due(share=0.3).of(10) == 3
    assert Due(share=1.0).of(7) == 7
    assert Due(share=0.0).of(7) == 0
    assert Due().of(7) == 7


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(WRN, stop_epoch=190, cells=20_000),
        Schedule(100, stop_share=0.75, share=0.3, decay="cosine"),
        Schedule(1, unit="epochs", share=0.3, decay="exponential", end=0.1, step_zero=True),
        Piecewise({0: 1e-5, 25: 1e-8}),
    ],
)
def test_schedules_are_data(schedule):
    data = json.loads(json.dumps(schedule.to_dict()))
    assert type(schedule).from_dict(data) == schedule


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("every", {"every": 0}),
        ("every", {"every": 1.5}),
        ("every", {"every": {5: 100}}),
        ("unit", {"unit": "batches"}),
        ("stop_epoch", {"stop_epoch": -1}),
        ("stop_epoch", {"stop_epoch": 0.75}),
        ("stop_share", {"stop_share": 1.5}),
        ("stop_share", {"stop_share": 0.5, "stop_epoch": 3}),
        ("step_zero", {"step_zero": 1}),
        ("cells", {"cells": 0.5}),
        ("cells", {"cells": -1}),
        ("share", {"share": 1.1}),
        ("share", {"share": math.nan}),
        ("share", {"share": 0.1, "cells": 5}),
        ("decay", {"decay": "quadratic"}),
        ("end", {"end": -1}),
        ("end", {"decay": "exponential"}),
    ],
)
def test_fields_that_are_refused(field, options):
    with pytest.raises(ArgumentError, match=rf"Schedule\.{field}"):
        Schedule(**{"every": 100, **options})


def test_schedules_longer_than_training():
    clock = Clock(10, 10)
    Schedule({0: 10, 9: 20}, stop_epoch=10).check(clock)
    for schedule in (Schedule({0: 10, 10: 20}), Schedule(10, stop_epoch=11)):
        with pytest.raises(ArgumentError, match="longer than"):
            schedule.check(clock)
    for schedule in (Schedule(100), Schedule(10, stop_epoch=1), Schedule(10, stop_share=0.0)):
        with pytest.raises(ArgumentError, match="no event"):
            schedule.check(clock)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (1.5, 2), (2, True)])
def test_clocks_that_are_none(sizes):
    with pytest.raises(ArgumentError, match="Clock"):
        Clock(*sizes)
