"""What rewiring takes of memory, counted in bytes of tensors and measured in fresh processes.

A masked run takes no less memory than a dense one. What it could take is stated beside it: the
values of active weights, and where they are as one bit for every weight or four bytes for every
active one, whichever is less.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from bench.dynamic_sizes import DENSITY, PERIOD, STATED, Sizes
from bench.dynamic_training import Task, Training
from bench.speed.memory import extra_bytes
from bench.speed.ratio import Outcome, Ratio
from bench.speed.rounds import Settings
from bench.speed.subprocesses import run_python
from passes.dynamic.registry import find_rule

DENSE = "dense"
_VALUE_BYTES = _INDEX_BYTES = 4


def tensor_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the memory behind tensors, each stretch counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def ideal_bytes(weights: int, active: int, size: int = _VALUE_BYTES) -> int:
    """Bytes of a sparse tensor: values and the cheaper of a bit mask and indices.

    Args:
        weights: Of the dense tensor.
        active: How many are stored.
        size: Bytes of a value.
    """
    return active * size + min(-(-weights // 8), active * _INDEX_BYTES)


def measure_memory(sizes: Sizes, settings: Settings) -> Outcome:
    """What masks, gradients and the engine take, and the peak of training, beside a dense run."""
    task = sizes.large
    ratios = _counted(task)
    peaks = {rule: peak_bytes(task, rule, settings) for rule in (DENSE, "static", "dsr_plus")}
    name = f"{task.name}, {task.images}: peak of two steps"
    for rule in ("static", "dsr_plus"):
        pair = (peaks[rule], peaks[DENSE])
        ended = ", the second with its event" if rule == "dsr_plus" else ""
        base = "the same of dense training"
        ratios.append(Ratio(f"{name}, rule {rule}{ended}", base, STATED, (pair,), "bytes"))
    return Outcome(tuple(ratios))


def _counted(task: Task) -> list[Ratio]:
    """Tensors at an event of rule dsr_plus; sizes do not depend on the batch."""
    small = task.small()
    training = Training(small, small.batches(1), find_rule("dsr_plus"), DENSITY)
    training.begin(PERIOD)
    training.gradient_step()
    engine, own = training.rewires, list(training.graph.module.parameters())
    masks = [mask for member in engine.members for mask in engine.watched(member)]
    state = [v for s in training.optimizer.state.values() for v in s.values()]
    whole = tensor_bytes(own)
    sparse = tensor_bytes(training.graph.parameter(m.site) for m in engine.members)
    pairs = zip(engine.members, engine.counts(), strict=True)
    ideal = sum(ideal_bytes(m.shape.parameters, n) for m, n in pairs)
    values = _VALUE_BYTES * sum(engine.counts())
    found = {
        "state of the optimizer, one momentum": tensor_bytes(state),
        "masks, a byte a weight": tensor_bytes(mask.keep for mask in masks),
        "dense gradients gathered for an event": tensor_bytes(mask.dense for mask in masks),
        "the engine: what was ever active, a byte a weight": tensor_bytes(engine.ever),
        "the engine of rule deepr besides: its list of active weights": _walk_bytes(small),
        "ideal: active weights and all dense parameters": whole - sparse + values,
        "ideal: the same with positions": whole - sparse + ideal,
    }
    base = f"parameters of {task.name}, {DENSITY:.0%} of the sparse tensors active"
    alone = "its sparse tensors"
    return [
        *(_bytes(what, base, size, whole) for what, size in found.items()),
        _bytes("ideal: active weights of sparse tensors", alone, values, sparse),
        _bytes("ideal: the same with positions", alone, ideal, sparse),
    ]


def _bytes(name: str, base: str, size: int, whole: int) -> Ratio:
    return Ratio(name, base, STATED, ((size, whole),), "bytes")


def _walk_bytes(task: Task) -> int:
    """Of what the walk of rule deepr keeps from step to step."""
    training = Training(task, task.batches(1), find_rule("deepr"), DENSITY)
    training.steps(1)
    kept: list[Tensor] = []
    for value in vars(training.rewires.walker).values():
        several = value if isinstance(value, list | tuple) else [value]
        kept += [one for one in several if isinstance(one, Tensor)]
    return tensor_bytes(kept)


def peak_bytes(task: Task, rule: str, settings: Settings) -> int:
    """Bytes at the peak of a fresh process that builds a network and trains it for two steps."""
    arguments = (json.dumps(asdict(task)), rule, str(settings.threads))
    return int(json.loads(run_python("-m", "bench.dynamic_memory", *arguments))["extra"])


def train_twice(task: Task, rule: str) -> None:
    """A plain step, and one with an event where the rule has them."""
    training = Training(
        task, task.batches(1), None if rule == DENSE else find_rule(rule), density=DENSITY
    )
    for number in (1, PERIOD):
        training.begin(number)
        training.steps(1)


def main(task: str, rule: str, threads: str) -> None:
    """Train in this process, and print `{"extra": bytes}`."""
    torch.set_num_threads(int(threads))
    fields = json.loads(task)
    subject = Task(**fields | {"input_shape": tuple(fields["input_shape"])})
    subject.subject.model()  # what is imported for it is not counted
    print(json.dumps({"extra": extra_bytes(partial(train_twice, subject, rule))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
