"""The clause of `transform.testing` on training: a run that was stopped goes on, bit for bit."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from energy_model.errors import ArgumentError, StorageError
from passes.methods.base import Method, MethodSpec
from passes.methods.config import MethodConfig
from passes.methods.registry import methods
from passes.storage.tree import pack_tree
from transform.compress import compress
from transform.fingerprint import state_digest
from transform.result import Compressed
from transform.storage import CHECKPOINTS
from transform.testing.parts import feasible, require, small_models, unchanged
from transform.training.config import TrainConfig

# Seven steps an epoch: few intervals divide them, so that a counter which starts anew is noticed.
_STEPS, _BATCH = 7, 4
_TRAIN = TrainConfig(epochs=3, lr=0.05, select="last")
_SAVED = "numbers, strings, tensors, and lists, tuples and dicts of them"
_CHILD = "from transform.testing.resume import child; child()"
_NOT_FOUND = 64  # exit status of a child


class _Interrupted(Exception):
    """Stops a run in this process, as a signal would."""


def _interrupt() -> None:
    raise _Interrupted


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Batches:
    """Labelled batches; a run may be stopped in the middle of its second epoch.

    A look at the first batch is no pass; some methods read all of them before training.

    Args:
        items: The batches.
        stop: Called in the middle of the second epoch, or `None`.
        before: Passes before training.
    """

    def __init__(
        self, items: Sequence[Any], stop: Callable[[], None] | None, before: int = 0
    ) -> None:
        self._items, self._stop = items, stop
        self._passes = -before

    @property
    def passes(self) -> int:
        """Passes so far, without those before training."""
        return self._passes

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(self._items):
            if number == len(self) // 2:
                self._passes += 1
                if self._stop is not None and self._passes == 2:
                    self._stop()
            yield item


@dataclass(frozen=True, slots=True)
class Trial:
    """A small training run, that can be stopped.

    Attributes:
        config: The method.
        model: What is compressed.
        example: Inputs of the model.
        budget: The limit.
        before: How often the method reads all data before training.
    """

    config: MethodConfig
    model: nn.Module
    example: Tensor
    budget: str
    before: int = 0

    def run(self, out: Path | None = None, stop: Callable[[], None] | None = None) -> Compressed:
        """Train under the budget; with `out`, from the checkpoint there on, if there is one."""
        return self._run(_Batches(self._data(), stop, self.before), out)

    def counted(self) -> tuple[Compressed, int]:
        """Train, and count how often the method reads the data before."""
        batches = _Batches(self._data(), None)
        result = self._run(batches, None)
        return result, batches.passes - sum(row["event"] == "trained" for row in result.history)

    def _run(self, batches: _Batches, out: Path | None) -> Compressed:
        return compress(
            self.model,
            self.budget,
            batches,
            valid=self._data()[:2],
            example_inputs=self.example,
            method=self.config,
            train=_TRAIN,
            out=out,
            progress="none",
        )

    def _data(self) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        count = _STEPS * _BATCH
        with torch.no_grad():
            classes = copy.deepcopy(self.model)(self.example).shape[1]
        x = torch.randn(count, *self.example.shape[1:], generator=generator)
        y = torch.randint(classes, (count,), generator=generator)
        return [(x[i : i + _BATCH], y[i : i + _BATCH]) for i in range(0, count, _BATCH)]


def _traits(result: Compressed) -> dict[str, str]:
    """What must not depend on a stop, written down; times may."""
    rows = [{k: v for k, v in row.items() if k != "milliseconds"} for row in result.history]
    return {
        "weights": state_digest(result.model),
        "history": json.dumps(rows),
        "certificate": json.dumps(result.certificate.to_dict()),
    }


def check_resumed(spec: MethodSpec, trial: Trial, where: str) -> Trial:
    """Stop a run in every epoch but the first; returns the run, within a budget that can be met."""
    passes: list[int] = []

    def run(budget: Any) -> Compressed:
        def counted() -> Compressed:
            result, before = replace(trial, budget=budget).counted()
            passes.append(before)
            return result

        return unchanged(trial.model, where, counted)

    whole = feasible(run, trial.budget, where)
    reachable = replace(trial, budget=str(whole.limits[0].limit), before=passes[-1])
    with (
        tempfile.TemporaryDirectory(prefix="transform-check-") as folder,
        _watched_state(spec.method, where),
        _resumable(where),
    ):
        resumed = _stopped_and_resumed(reachable, Path(folder) / "out", where)
    _check_same(_traits(whole), _traits(resumed), reachable, "stopped", where)
    return reachable


def _stopped_and_resumed(trial: Trial, out: Path, where: str) -> Compressed:
    """Every call goes on by one epoch and is stopped in the next, until there is none."""
    seen: set[str] = set()
    while True:
        try:
            return unchanged(trial.model, where, lambda: trial.run(out, _interrupt))
        except _Interrupted:
            left = _checkpoints(out)
            require(bool(left - seen), "a stopped run left no new checkpoint", where)
            seen |= left


def _checkpoints(out: Path) -> set[str]:
    return {path.name for path in out.glob(f"{CHECKPOINTS}/*")}


def _check_same(
    whole: Mapping[str, str], resumed: Mapping[str, str], trial: Trial, how: str, where: str
) -> None:
    differ = [name for name, value in whole.items() if resumed[name] != value]
    if differ:
        again = _traits(trial.run())
        require(again == whole, "in training, the same seed gives another result", where)
    require(
        not differ,
        f"a run that was {how} and resumed differs from one that was not, in {', '.join(differ)}: "
        "state_dict() must hold all that training changes in the method",
        where,
    )


@contextmanager
def _resumable(where: str) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        require(False, f"a stopped run cannot be resumed: {error}", where)


@contextmanager
def _watched_state(method: type[Method], where: str) -> Iterator[None]:
    """Check what the training loop saves and loads, when it does."""
    get, put = method.state_dict, method.load_state_dict

    def state_dict(self: Method) -> dict[str, Any]:
        state = get(self)
        _written(state, where)
        return state

    def load_state_dict(self: Method, state: dict[str, Any]) -> None:
        given = _written(state, where)
        put(self, state)
        same = _written(get(self), where) == given
        require(same, "load_state_dict() does not take back what state_dict() gave", where)

    with (
        mock.patch.object(method, "state_dict", state_dict),
        mock.patch.object(method, "load_state_dict", load_state_dict),
    ):
        yield


def _written(state: Any, where: str) -> Any:
    """A state as a checkpoint would hold it, comparable."""
    require(isinstance(state, dict), "state_dict() is no dict", where)
    tensors: dict[str, Tensor] = {}
    packed = {}
    for key, value in state.items():
        try:
            packed[key] = pack_tree({key: value}, tensors, "t")
        except StorageError as error:
            what = f"state_dict() holds at {key!r} what no checkpoint can: {error.what}"
            require(False, f"{what}; it may hold {_SAVED}", where)
    raw = [t.reshape(-1).view(torch.uint8).tolist() for t in tensors.values()]
    return packed, [(t.dtype, t.shape) for t in tensors.values()], raw


def check_killed(trial: Trial, spec: MethodSpec, where: str) -> None:
    """Kill a run and resume it, each in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="transform-check-") as folder:
        out = Path(folder) / "out"
        killed = _in_a_process(trial, spec, out, stop=True)
        ended = killed.returncode == -signal.SIGKILL
        require(ended, f"training fails in a fresh process: {_last(killed)}", where)
        require(bool(_checkpoints(out)), "a killed run left no checkpoint", where)
        resumed = _in_a_process(trial, spec, out, stop=False)
        require(not resumed.returncode, f"a killed run cannot be resumed: {_last(resumed)}", where)
    answer = json.loads(resumed.stdout.splitlines()[-1])
    _check_same(_traits(trial.run()), answer, trial, "killed", where)


def _last(process: subprocess.CompletedProcess[str]) -> str:
    return (process.stderr.strip().splitlines() or ["it says nothing"])[-1]


def _in_a_process(
    trial: Trial, spec: MethodSpec, out: Path, stop: bool
) -> subprocess.CompletedProcess[str]:
    """Train in a fresh process that finds packages where this one does."""
    task = {
        "method": spec.name,
        "class": _full_name(spec.method),
        "config": trial.config.to_dict(),
        "budget": trial.budget,
        "out": str(out),
        "before": trial.before,
        "stop": stop,
        "threads": torch.get_num_threads(),
    }
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    process = subprocess.run(
        [sys.executable, "-P", "-c", _CHILD, json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    if process.returncode == _NOT_FOUND:
        raise ArgumentError(
            "a fresh process does not find this method",
            where=spec.name,
            remedy="Install the package that registers it, or leave kill=True out.",
        )
    return process


def _full_name(method: type) -> str:
    return f"{method.__module__}:{method.__qualname__}"


def child() -> None:
    """Train in this process, which may end by SIGKILL; print what came out of it."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    spec = methods().get(task["method"])
    if spec is None or _full_name(spec.method) != task["class"]:
        sys.exit(_NOT_FOUND)
    model, example = next(small_models())
    config = spec.config.from_dict(task["config"])
    trial = Trial(config, model, example, task["budget"], task["before"])
    result = trial.run(Path(task["out"]), _kill if task["stop"] else None)
    print(json.dumps(_traits(result)))
