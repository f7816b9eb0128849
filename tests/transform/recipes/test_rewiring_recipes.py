"""The recipes of sparse training: budgets that the models prove, and schedules that fit.

Numbers without a source beside them are of Mostafa and Wang, ICML 2019.
"""

from __future__ import annotations

import functools
from fnmatch import fnmatchcase

import pytest
import torch

import bench.zoo  # noqa: F401 -- makes torchvision importable on a CPU-only torch
from passes.dynamic.registry import find_rule
from passes.dynamic.schedule import Clock
from passes.dynamic.start import SparseShape, uniform
from passes.methods.sparse_training.overrides import rule_for
from transform import SparseTraining
from transform.cli.objects import find_object
from transform.recipes.recipe import load_recipe, recipe_names

SHARES = {f"s{percent}": percent / 100 for percent in (50, 60, 70, 80, 90)}
WRN, RESNET = "wrn28-2-cifar10-rewiring", "resnet50-imagenet-rewiring"
PUBLISHED = sorted(name for name in recipe_names() if name.startswith((WRN, RESNET)))
# Sparsities in the order of the budgets.
BUDGETS = {
    **{f"{WRN}-{name}": (share,) for name, share in SHARES.items()},
    f"{WRN}-pruned": tuple(SHARES.values()),
    f"{RESNET}-s80": (0.8,),
    f"{RESNET}-s90": (0.9,),
    f"{RESNET}-pruned": (0.8, 0.9),
    f"{RESNET}-shortcuts": (0.8, 0.9),
    "wrn16-1-cifar10-rewiring": (0.9,),
}
# Sparse tensors, their weights, and all learnable parameters.
SIZES = {
    WRN: (24, 1_451_520, 1_467_610),
    RESNET: (49, 22_724_608, 25_557_032),
    f"{RESNET}-shortcuts": (53, 22_724_608 + 2_768_896, 25_557_032),
    "wrn16-1-cifar10-rewiring": (12, 170_496, 175_066),
}
LEARNABLE = {
    WRN: {0.5: 741_850, 0.6: 596_687, 0.7: 451_532, 0.8: 306_384, 0.9: 161_229},
    RESNET: {0.8: 7_377_320, 0.9: 5_104_861},
}
# Steps of an epoch: of all training images as in the papers, and of nine tenths.
EPOCH_STEPS = {WRN: (500, 450), RESNET: (5005, 4504)}


def family(name):
    return name if name in SIZES else WRN if name.startswith(WRN) else RESNET


def home(name):
    return WRN if name.startswith(WRN) else RESNET


@functools.cache
def model_of(name):
    with torch.device("meta"):
        return find_object(name, "MODEL")()


class Network:
    """The parameters of a recipe's model, and which of them its `layers` leave dense."""

    def __init__(self, recipe):
        model = model_of(recipe.model)
        self.all = sum(p.numel() for p in model.parameters())
        weights = {n: p for n, p in model.named_parameters() if p.dim() > 1}
        assert set(recipe.layers.values()) == {False}
        dense = {
            name
            for name in weights
            if any(fnmatchcase(name.removesuffix(".weight"), glob) for glob in recipe.layers)
        }
        self.dense = sum(weights[name].numel() for name in dense)
        self.shapes = [SparseShape(n, tuple(p.shape)) for n, p in weights.items() if n not in dense]
        self.sparse = sum(shape.parameters for shape in self.shapes)

    def kept(self, sparsity):
        """Weights of the sparse tensors that are left, as the papers start."""
        return sum(uniform(self.shapes, 1 - sparsity))


@pytest.fixture(scope="module")
def networks():
    return {name: Network(load_recipe(name)) for name in BUDGETS}


def rows(name):
    """One cell of every method, by its label."""
    return {cell.label: cell for cell in load_recipe(name).cells()}


def clocks(name, cell):
    return [Clock(cell.train.epochs, steps) for steps in EPOCH_STEPS[home(name)]]


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", BUDGETS)
def test_the_budget_is_what_is_left_and_what_stays_dense(name, networks):
    network, recipe = networks[name], load_recipe(name)
    assert (len(network.shapes), network.sparse, network.all) == SIZES[family(name)]
    wanted = [f"nonzeros<={network.kept(s) + network.dense}" for s in BUDGETS[name]]
    assert list(dict.fromkeys(cell.budget for cell in recipe.cells())) == wanted
    assert recipe.budget == wanted[-1]


@pytest.mark.parametrize("name", [f"{WRN}-pruned", f"{RESNET}-pruned"])
def test_published_numbers_of_parameters(name, networks):
    network = networks[name]
    assert {
        share: network.all - network.sparse + network.kept(share) for share in BUDGETS[name]
    } == LEARNABLE[family(name)]


@pytest.mark.parametrize("name", [WRN, RESNET])
def test_thin_networks_may_have_the_parameters_of_sparse_ones(name):
    budgets = list(dict.fromkeys(cell.budget for cell in load_recipe(f"{name}-dense").cells()))
    assert budgets == ["params<=100%", *(f"params<={n}" for n in LEARNABLE[name].values())]


def test_the_thin_small_network_too(networks):
    network = networks["wrn16-1-cifar10-rewiring"]
    learnable = network.all - network.sparse + network.kept(0.9)
    budgets = {cell.budget for cell in load_recipe("wrn16-1-cifar10-dense").cells()}
    assert budgets == {"params<=100%", f"params<={learnable}"}


@pytest.mark.spread(5)
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_schedule_fits_into_its_training(name):
    for cell in rows(name).values():
        for clock in clocks(name, cell):
            if not isinstance(cell.method, SparseTraining):
                assert cell.method.scope == "layer"
                continue
            rule = rule_for(cell.method, clock)
            if rule.schedule is not None:
                assert next(rule.schedule.events(clock)) < clock.steps, cell.label
            if rule.prune is not None:
                prunes = rule.prune.steps(clock)
                assert len(prunes) == 20
                assert [step // clock.epoch_steps for step in prunes] == list(range(0, 39, 2))
                assert rule.prune.epochs == cell.train.epochs == 48


@pytest.mark.parametrize(("name", "events"), [(f"{WRN}-s90", 367), (f"{RESNET}-s90", 232)])
def test_the_published_number_of_events(name, events):
    cells = rows(name)
    for label in ("set", "dsr", "dsr exact", "dsr kernels"):
        clock = clocks(name, cells[label])[0]
        assert len([*rule_for(cells[label].method, clock).schedule.events(clock)]) == events


@pytest.mark.spread(4)
@pytest.mark.parametrize("name", [n for n in BUDGETS if n.rpartition("-")[2] in SHARES])
def test_set_moves_as_much_as_dsr(name, networks):
    cells, [sparsity] = rows(name), BUDGETS[name]
    assert cells["set"].method.every == cells["dsr"].method.every
    share = cells["dsr"].method.cells / networks[name].kept(sparsity)
    # But for ResNet-50 at 90 %, where it is 14 % there and not 17.6.
    wanted = 0.14 if name == f"{RESNET}-s90" else pytest.approx(share, abs=1.2e-3)
    assert cells["set"].method.share == wanted


RATES = {
    (WRN, 200): {0: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008},
    (WRN, 400): {0: 0.1, 120: 0.02, 220: 0.004, 350: 0.0008},
    (WRN, 48): {0: 0, 1: 0.02, 25: 0.004, 35: 0.0008},
    (RESNET, 100): {0: 0.1, 30: 0.01, 60: 0.001, 90: 0.0001},
    (RESNET, 200): {0: 0.1, 60: 0.01, 120: 0.001, 180: 0.0001},
    (RESNET, 48): {0: 0, 1: 0.01, 25: 0.001, 35: 0.0001},
}
PENALTIES = {"deepr": 0.0, "pruned": 1e-4}  # of the wide networks; otherwise 5e-4


@pytest.mark.spread(3)
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_cell_is_trained_as_published(name):
    recipe = load_recipe(name)
    of = home(name)
    assert f"batch={100 if of == WRN else 256}" in recipe.data
    for cell in (*recipe.cells(), *recipe.earlier(0)):
        train = cell.train
        assert train.schedule == RATES[of, train.epochs], cell.label
        assert (train.optimizer, train.momentum, train.nesterov) == ("sgd", 0.9, True)
        assert train.weight_decay == (1e-4 if of == RESNET else PENALTIES.get(cell.label, 5e-4))
        if cell.label.endswith("epochs"):
            assert f"{train.epochs} epochs" in cell.label
    assert {cell.seed for cell in recipe.cells()} == set(range(5) if of == WRN else [0])


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n.endswith("-pruned")])
def test_what_is_pruned_was_trained_dense_before(name):
    [stage] = load_recipe(name).earlier(3)
    assert (stage.seed, stage.budget, stage.method.rule) == (3, "nonzeros<=100%", "static")
    assert stage.train.epochs == (200 if home(name) == WRN else 100)
    form = {cell.method.pruning.form for cell in load_recipe(name).cells()}
    assert form == {"cubic" if home(name) == WRN else "exponential"}


def test_the_matrices_have_every_method():
    every = {"static", "set", "deepr", "dsr", "dsr exact", "dsr kernels", "rigl ERK", "dsr_plus"}
    stops = {f"dsr until epoch {e}" for e in (10, 50, 100, 150)}
    for name in (f"{WRN}-{percent}" for percent in SHARES):
        more = stops if name.endswith(("s80", "s90")) else set()
        assert set(rows(name)) == every | {"static, 400 epochs"} | more
    for name in (f"{RESNET}-s80", f"{RESNET}-s90"):
        assert set(rows(name)) == every | {"static, 200 epochs"}
    stopped = {c.method.stop_epoch for n, c in rows(f"{WRN}-s90").items() if n.startswith("dsr")}
    assert stopped == {None, 10, 50, 100, 150, 190}


def test_values_at_the_start_are_the_same_in_every_row():
    for name in PUBLISHED:
        for label, cell in rows(name).items():
            if isinstance(cell.method, SparseTraining):
                assert not cell.method.rescaled, (name, label)


@pytest.mark.parametrize(("of", "names"), [(WRN, list(SHARES)), (RESNET, ["s80", "s90"])])
def test_files_of_one_network_differ_in_numbers_only(of, names):
    def form(name):
        values = load_recipe(f"{of}-{name}").to_dict()
        methods = [
            {key: value for key, value in method.items() if key != "share"}
            for method in values["matrix"]["method"]
            if not method["label"].startswith("dsr until")
        ]
        rest = ("name", "about", "budget")
        values["matrix"] = {**values["matrix"], "method": methods}
        return {key: value for key, value in values.items() if key not in rest}

    first, *others = map(form, names)
    assert all(other == first for other in others)


def test_deep_r_walks_as_in_the_comparison():
    walks = {name: rows(f"{name}-s90")["deepr"].method.walk for name in (WRN, RESNET)}
    temperatures = {
        WRN: ((0, 1e-5), (25, 1e-8), (80, 1e-12), (140, 1e-15)),
        RESNET: ((0, 1e-5), (25, 1e-8), (50, 1e-12), (75, 1e-15)),
    }
    for name, walk in walks.items():
        assert (walk.noise, walk.signs, walk.eta, walk.l1) == (
            "gradient",
            "first_update",
            0.01,
            1e-5,
        )
        assert walk.temperature == temperatures[name]
    assert find_rule("deepr").walk is not None
