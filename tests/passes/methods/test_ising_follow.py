"""What follows the weights and the falling budget while it is searched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ising_nets import Searching, conv_data, conv_net

import transform
from passes.ising.repair import annealed
from passes.methods.ising import Ising
from passes.methods.ising.energies import by_chance
from passes.methods.ising.live_search import LiveSearch
from passes.methods.ising.method import refresh_steps


def states(count, nodes=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, nodes, generator=generator) < 0.5


def test_numbers_by_chance_are_those_of_their_states():
    population = states(2000)
    found = by_chance(population, b"one")
    assert torch.equal(by_chance(population.flip(0), b"one").flip(0), found)
    assert not torch.equal(by_chance(population, b"two"), found)
    assert len(found.unique()) == len(population.unique(dim=0))
    assert float(found.min()) >= 0 and float(found.max()) < 1
    # Uniform: mean 1/2 and variance 1/12, within four standard errors.
    assert abs(float(found.mean()) - 1 / 2) < 4 * (1 / 12 / 2000) ** 0.5
    assert abs(float(found.var()) - 1 / 12) < 4 * (1 / 180 / 2000) ** 0.5
    # Of neighbours, one says nothing of the other.
    other = population.clone()
    other[:, 0] ^= True
    both = torch.stack([found, by_chance(other, b"one")])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / 2000**0.5


def test_the_best_by_chance_stays_until_a_better_one_comes():
    training = Searching(Ising(energy="random", anneal=False, search_share=1.0, patience=10**6))
    energies = []
    for _ in range(20):
        training.step()
        energies.append(training.live.report()["energy_best"])
    assert energies == sorted(energies, reverse=True)
    assert len(set(energies)) > 1


def test_the_bias_of_the_ising_energy_is_that_of_the_budget_of_the_moment():
    training = Searching(Ising(energy="ising", search_share=1.0), steps=40)
    part, repair = training.live.energies._ising, training.live.setting.repair
    biases = []
    for _ in range(27):
        training.step()
        followed = training.number // 4 * 4  # ten times in a search
        own = repair.under(annealed(repair.limits, min(1.0, followed / 40 / 0.7)))
        expected = dict(zip(repair.layout.names, (2 * own.keep_rates()).tolist(), strict=True))
        assert part.state_dict()["bias"] == expected
        biases.append(sum(expected.values()))
        # As if it had been computed with this bias.
        population = training.live.search.population
        fresh = type(part.energy)(repair.layout, replace(part._couplings, bias=expected))
        assert torch.equal(part.energy(population), fresh(population))
    assert biases == sorted(biases, reverse=True) and biases[0] > 1.3 * biases[-1]


def test_states_of_low_ising_energy_use_the_budget_of_the_moment():
    training = Searching(Ising(energy="ising", search_share=1.0), steps=40)
    setting, limits = training.live.setting, training.live.setting.repair.limits
    for _ in range(27):
        [limit] = annealed(limits, min(1.0, training.number / 40 / 0.7))
        cost = setting.reached(training.live.search.best)["macs"]
        assert 0.85 * limit.maximum < cost <= limit.maximum
        training.step()


def test_a_leap_finds_what_a_repair_by_importance_does_not(monkeypatch):
    def lowest():
        result = transform.compress(
            conv_net(),
            "macs<=40%",
            data=conv_data(),
            method=Ising(energy="ising", generations=20),
            train=False,
            progress="none",
        )
        return result.plan.details["search"]["energy_best"]

    leaping = lowest()
    monkeypatch.setattr(LiveSearch, "_leap", lambda self, row: row)
    assert leaping < lowest()


def test_couplings_are_the_mean_of_the_first_ones_and_then_a_running_mean():
    training = Searching(Ising(energy="ising", inter=0.0))
    part, live = training.live.energies._ising, training.live
    [name, *_] = live.setting.layout.names

    def measured():
        """Of the present weights alone."""
        before, part._couplings = part._couplings, None
        count = part._measured
        part.refresh([])
        now, part._couplings, part._measured = part._couplings, before, count
        return now.blocks[name].spins

    part._couplings = None
    part.refresh([])
    seen = [part._couplings.blocks[name].spins]
    generator = torch.Generator().manual_seed(5)
    for number in range(2, 13):
        with torch.no_grad():
            for parameter in training.graph.module.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        seen.append(measured())
        before = part._couplings.blocks[name].spins
        part.refresh([])
        found = part._couplings.blocks[name].spins
        expected = sum(seen) / number if number <= 10 else 0.9 * before + 0.1 * seen[-1]
        torch.testing.assert_close(found, expected)
    assert part.state_dict()["measured"] == 12


@pytest.mark.parametrize(
    ("refresh", "steps", "every"), [(100, 10_000, 100), (100, 89, 8), (3, 89, 3), (100, 4, 1)]
)
def test_importances_follow_ten_times_at_least(refresh, steps, every):
    assert refresh_steps(Ising(refresh=refresh), steps) == every


def test_a_search_whose_budget_has_fallen_converges():
    training = Searching(Ising(patience=3, search_share=1.0, energy="random"), steps=100)
    while not training.method.can_be_result():
        training.step()
    [ended] = [d for d in training.graph.decisions if "search" in d.what]
    assert "the same for 3 generations" in ended.why or "differ in" in ended.why
    assert 70 <= training.number < 100


def test_rates_count_whatever_evolves():
    def after(**options):
        training = Searching(Ising(anneal=False, energy="random", **options))
        training.steps(3)
        return training.live.search.population

    assert not torch.equal(after(crossover=0.5), after(crossover=0.0))
    assert not torch.equal(after(mutation=0.9), after(mutation=0.1))
