"""Who trains the candidates: this process alone."""

from __future__ import annotations

import pytest
import torch
from student_nets import Width, assert_same, build, lesson, make_build, student, together

import transform.training.workers as module
from energy_model.errors import ArgumentError, TrainingError
from passes.methods.embedding.config import EmbeddingSearch
from passes.methods.embedding.jobs import Job
from transform.training.config import Distill, TrainConfig
from transform.training.students import search_training
from transform.training.workers import SerialEvaluator, make_evaluator


def job(width, epochs=1, start=None, fault="", seed=3):
    return Job(Width(width, fault), 0, epochs, seed, start)


@pytest.fixture(scope="module")
def serial():
    return SerialEvaluator(lesson(), build)


def test_outcomes_come_in_the_order_of_the_jobs(serial):
    jobs = [job(5, 2), job(16), job(9, 2), job(5)]
    for asked, outcome in zip(jobs, serial.evaluate(jobs), strict=True):
        width = asked.genotype.width
        [alone] = together(lesson(), [student(width, seed=width)], asked.epochs)
        assert_same(outcome, alone)
    assert serial.evaluate([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_how_many_are_in_memory_does_not_matter(serial, size):
    jobs = [job(5), job(9), job(16)]
    small = SerialEvaluator(lesson(), build, together=size)
    for first, second in zip(serial.evaluate(jobs), small.evaluate(jobs), strict=True):
        assert_same(first, second)


def test_candidates_climb(serial):
    [one, other] = serial.evaluate([job(5), job(9)])
    found = serial.evaluate([job(5, 3, one.state), job(9, 3, other.state)])
    for first, second in zip(found, serial.evaluate([job(5, 3), job(9, 3)]), strict=True):
        assert_same(first, second)


def test_the_seed_of_a_job_is_the_student_s(serial):
    first, second, third = serial.evaluate([job(9), job(9, seed=4), job(9)])
    assert_same(first, third)
    weights = (o.state.model["0.weight"] for o in (first, second))
    assert not torch.equal(*weights)


def test_what_cannot_be_built_has_failed(serial):
    bad, good, wrong = serial.evaluate([job(5, fault="build"), job(9), job(5, fault="shape")])
    assert bad.failure == "ValueError: there is no such layer"
    assert (bad.accuracy, bad.state) == (1 / 3, None)
    assert "(8, 4)" in wrong.failure
    assert_same(good, serial.evaluate([job(9)])[0])
    assert serial.evaluate([job(5, fault="build")])[0].failure == bad.failure


def test_what_fails_for_all_is_raised():
    def broken(outputs, targets):
        raise KeyError("mine")

    with pytest.raises(TrainingError, match="mine"):
        SerialEvaluator(lesson(loss=broken), build).evaluate([job(5)])


def test_one_worker_is_this_process():
    assert isinstance(make_evaluator(EmbeddingSearch(), lesson(), make_build), SerialEvaluator)


@pytest.mark.parametrize("options", [{"workers": 2}, {"address": "ray://nowhere:1"}])
def test_more_workers_need_ray(options, monkeypatch):
    monkeypatch.setitem(module.sys.modules, "ray", None)
    with pytest.raises(ArgumentError, match="not installed") as error:
        make_evaluator(EmbeddingSearch(**options), lesson(), make_build)
    assert "transform-compiler[ray]" in error.value.remedy


def test_how_a_search_trains():
    # Adam, lr 1e-3, weight decay 5e-4, constant; 0.5 * KL at T = 4, times 16, and 0.5 * CE.
    expected = TrainConfig(
        epochs=10,
        optimizer="adam",
        lr=1e-3,
        weight_decay=5e-4,
        schedule="constant",
        distill=Distill(0.5, "kl", 4.0),
    )
    assert search_training(EmbeddingSearch()) == expected
    paper = EmbeddingSearch(
        distill="logit_mse", distill_weight=1.0, fidelity=(10,), optimizer="sgd", lr=0.1
    )
    assert search_training(paper).distillation == Distill(1.0, "logit_mse")
    assert (search_training(paper).optimizer, search_training(paper).lr) == ("sgd", 0.1)
    assert search_training(EmbeddingSearch(distill=None)).distill is None
