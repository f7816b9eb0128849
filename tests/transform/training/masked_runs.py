"""A small convolutional net that takes input masks, its data, and runs that are watched."""

from __future__ import annotations

import torch
from torch import nn
from training_runs import seeded

import transform
from energy_model.hardware import load_hardware
from passes.analysis.costs import cost_table
from passes.inputs import as_call
from passes.methods.energy_projection import WeightedProjection
from passes.tracing.trace import trace

EYERISS = load_hardware("eyeriss")
KEEP = (0.8, 0.6)
EPOCHS, STEPS = 2, 3


def conv_net(seed=0):
    """Two convolutions with norm and dropout: input `(N, 1, 8, 8)`, 3 classes."""

    def make():
        head = nn.Flatten(), nn.Dropout(0.1), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 3)
        first = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        return nn.Sequential(*first, nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), *head)

    return seeded(make, seed)


def image_batches(count=24, size=8, seed=1):
    """Images whose class is the column that is bright."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = 0.3 * torch.randn(count, 1, 8, 8, generator=generator)
    for image, target in zip(x, y, strict=True):
        image[0, 2:6, 2 * int(target) + 1] += 2.0
    return list(zip(x.split(size), y.split(size), strict=True))


class Script:
    """A metric that says what it is told, one value at each evaluation; then the last one."""

    def __init__(self, *values):
        self.values = list(values)

    def reset(self):
        self.value = self.values.pop(0) if len(self.values) > 1 else self.values[0]

    def update(self, outputs, targets):
        pass

    def compute(self):
        return self.value


def masked_run(budget="energy<=60%", **options):
    """Compress with masks; 2 epochs a phase and a projection every second step by default."""
    names = ("mask_keep", "mask_lr", "mask_cost", "mask_score", "start", "stop_early", "schedule")
    names += ("hold", "interval")
    method = {"mask_keep": KEEP, "mask_lr": 0.05, "stop_early": False, "interval": 2}
    method |= {name: options.pop(name) for name in names if name in options}
    options = {
        "train": {"epochs": EPOCHS, "lr": 0.05} | options.pop("train", {}),
        "valid": image_batches(seed=2),
        "method": transform.EnergyProjection(input_mask=True, **method),
        "progress": "none",
        "example_inputs": image_batches()[0][0],
    } | options
    model, data = options.pop("model", None) or conv_net(), options.pop("data", image_batches())
    return transform.compress(model, budget, data, **options)


class Watcher:
    """What the phases of a run began and ended with."""

    def __init__(self, monkeypatch):
        self.rows = []
        for name in ("on_phase_start", "on_phase_end"):
            monkeypatch.setattr(WeightedProjection, name, self.wrapped(name))

    def wrapped(self, name):
        original = getattr(WeightedProjection, name)

        def hook(method, phase):
            if name == "on_phase_end":
                self.rows[-1]["trained"] = self.state(method)
            original(method, phase)
            if name == "on_phase_start":
                self.rows.append({"phase": phase.name, "before": self.state(method)})
            else:
                self.rows[-1] |= {"after": self.state(method), **self.counted(method)}

        return hook

    @staticmethod
    def state(method):
        state = method._graph.runnable.state_dict()
        return {key: value.detach().clone() for key, value in state.items()}

    @staticmethod
    def counted(method):
        graph, run = method._graph, method._run
        weights = [graph.weight(site) for site in graph.compressible]
        return {
            "inputs": sum(site.activation_energy(EYERISS) for site in graph.sites),
            "prices": [price.copy() for price in method._masking._prices],
            "openings": [price.copy() for price in method._masking._openings],
            "still_saved": method.still_saved(),
            "capacity": method._problem_now(run.limits).capacities[0]
            if method._phase == "weights"
            else None,
            "energy": cost_table(graph, EYERISS).total.energy.relaxed,
            "recounted": recounted(graph.runnable),
            "nonzeros": sum(int((weight != 0).sum()) for weight in weights),
            "parameters": [name for name, _ in graph.runnable.named_parameters()],
        }

    @property
    def phases(self):
        return "".join(row["phase"][0] for row in self.rows)


def recounted(model):
    """The relaxed energy and that of the activations, from a new trace."""
    graph = trace(model, as_call(model, image_batches()[0][0]))
    fixed = sum(site.activation_energy(EYERISS) for site in graph.sites)
    return cost_table(graph, EYERISS).total.energy.relaxed, fixed


def mask_names(state):
    return [key for key in state if key.startswith("input_masks")]


def floor():
    """What the activations of the net cost without masks."""
    return recounted(conv_net().eval())[1]
