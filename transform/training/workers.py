"""Who trains the candidates of a search: this process, or several, on one machine or a cluster.

The outcomes are the same either way, bit for bit on the CPU: every candidate is trained as if it
were alone (see `transform.training.students`), and every process uses as many threads as this one.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch

from energy_model.errors import ArgumentError, CompressionError, TrainingError
from passes.graph import ModelGraph
from passes.methods.embedding.config import EmbeddingSearch
from passes.methods.embedding.jobs import Candidate, Evaluator, Job, Outcome
from transform.training.students import Lesson, train_students

Build = Callable[[Any], ModelGraph]
"""From a genotype to the student, with the weights that training begins with, in new memory."""

MakeBuild = Callable[[], Build]
"""Prepares a `Build` in a process; itself it can be sent to others, as a traced model cannot."""

TOGETHER = 8
"""Students that are trained in one pass over the data at most: all of them are in memory."""


def make_evaluator(
    search: EmbeddingSearch,
    lesson: Lesson,
    make_build: MakeBuild,
    device: torch.device | None = None,
) -> Evaluator:
    """The evaluator that a search asks for: its workers, or this process alone.

    Raises:
        ArgumentError: Ray is asked for and not installed, or something cannot be sent to workers.
    """
    if search.workers == 1 and search.address is None:
        return SerialEvaluator(lesson, make_build(), device)
    return RayEvaluator(lesson, make_build, search.workers, search.address, device)


class SerialEvaluator:
    """Trains candidates in this process, those of a rung together.

    Args:
        lesson: What they share.
        build: Makes the students.
        device: Where to work; `None` means where the students are built.
        together: How many are in memory at once.
    """

    def __init__(
        self,
        lesson: Lesson,
        build: Build,
        device: torch.device | None = None,
        together: int = TOGETHER,
    ) -> None:
        self.lesson = lesson
        self.build = build
        self.device = device
        self.together = together

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Outcomes in the order of the jobs.

        A candidate that cannot be built has failed as one has that cannot be trained.

        Raises:
            CompressionError: What would fail for every candidate; see `train_students`.
        """
        found: dict[int, Outcome] = {}
        for epochs in sorted({job.epochs for job in jobs}):
            numbers = [n for n, job in enumerate(jobs) if job.epochs == epochs]
            for first in range(0, len(numbers), self.together):
                some = numbers[first : first + self.together]
                outcomes = self._together([jobs[n] for n in some], epochs)
                found |= dict(zip(some, outcomes, strict=True))
        return [found[number] for number in range(len(jobs))]

    def _together(self, jobs: Sequence[Job], epochs: int) -> list[Outcome]:
        built = [self._built(job.genotype) for job in jobs]
        able = [(job, b) for job, b in zip(jobs, built, strict=True) if isinstance(b, ModelGraph)]
        trained = iter(
            train_students(
                self.lesson,
                [graph for _, graph in able],
                epochs,
                seeds=[job.seed for job, _ in able],
                starts=[job.start for job, _ in able],
                device=self.device,
            )
        )
        return [self.failed(b) if isinstance(b, str) else next(trained) for b in built]

    def _built(self, genotype: Candidate) -> ModelGraph | str:
        try:
            return self.build(genotype)
        except CompressionError as error:
            return error.what
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def failed(self, why: str) -> Outcome:
        """The outcome of a candidate that never trained."""
        return Outcome(self.lesson.chance, 0.0, None, why)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class _Task:
    """Jobs that one worker trains together, by number; again after a worker died of them."""

    numbers: tuple[int, ...]
    again: bool = False


class RayEvaluator:
    """Trains candidates in processes of their own, started with Ray.

    The lesson is sent once. The jobs of a rung are dealt out evenly. If a worker dies (killed, out
    of memory), another takes its place and its jobs are run once more, one by one; one of which a
    worker dies again has failed.

    Args:
        lesson: What the candidates share; everything in it must be such as pickle can send.
        make_build: Called once in every worker.
        workers: How many.
        address: Of a running cluster; `None` starts Ray on this machine.
        device: Where they work; for `"cuda"`, each has a device of its own.
        together: How many candidates a worker has in memory at once.

    Raises:
        ArgumentError: Ray is not installed, the cluster cannot be reached, or something cannot be
            sent.
        TrainingError: A worker cannot be started.
    """

    def __init__(
        self,
        lesson: Lesson,
        make_build: MakeBuild,
        workers: int = 2,
        address: str | None = None,
        device: torch.device | None = None,
        together: int = TOGETHER,
    ) -> None:
        self.lesson = lesson
        self.together = together
        self._workers: list[Any] = []
        self._ray = _require_ray()
        self._own = _start(self._ray, workers, address)
        try:
            self._shared = _put(self._ray, (lesson, make_build, device, together))
            self._options = {
                "num_cpus": 1,
                "num_gpus": int(device is not None and device.type == "cuda"),
            }
            self._workers = [self._worker() for _ in range(workers)]
            self._ready(self._workers)
        except BaseException:
            self.close()
            raise

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Outcomes in the order of the jobs.

        Raises:
            TrainingError: What would fail for every candidate; see `train_students`.
        """
        found: dict[int, Outcome] = {}
        waiting = deque(self._dealt(jobs))
        idle: deque[Any] = deque(self._workers)
        busy: dict[Any, tuple[_Task, Any]] = {}
        while waiting or busy:
            while waiting and idle:
                task, worker = waiting.popleft(), idle.popleft()
                some = [jobs[number] for number in task.numbers]
                busy[worker.evaluate.remote(some)] = task, worker
            [ended, *_], _ = self._ray.wait(list(busy))
            task, worker = busy.pop(ended)
            outcomes = self._outcomes(ended)
            if outcomes is not None:
                found |= dict(zip(task.numbers, outcomes, strict=True))
            else:
                worker = self._replaced(worker)
                if task.again:
                    why = "the process that trained it died, and so did a second one"
                    found[task.numbers[0]] = Outcome(self.lesson.chance, 0.0, None, why)
                else:
                    waiting += [_Task((number,), again=True) for number in task.numbers]
            idle.append(worker)
        return [found[number] for number in range(len(jobs))]

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for worker in self._workers if self._ray.is_initialized() else ():
            self._ray.kill(worker)
        self._workers = []
        if self._own:
            self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _dealt(self, jobs: Sequence[Job]) -> list[_Task]:
        """Jobs that end at the same epoch, in as equal parts as there are workers."""
        tasks = []
        for epochs in sorted({job.epochs for job in jobs}):
            numbers = [n for n, job in enumerate(jobs) if job.epochs == epochs]
            size = min(self.together, math.ceil(len(numbers) / len(self._workers)))
            parts = (numbers[first : first + size] for first in range(0, len(numbers), size))
            tasks += [_Task(tuple(part)) for part in parts]
        return tasks

    def _outcomes(self, ended: Any) -> list[Outcome] | None:
        """What a worker returned; `None` if it died."""
        errors = self._ray.exceptions
        try:
            outcomes: list[Outcome] = self._ray.get(ended)
        except errors.RayTaskError as error:
            raise _told(error) from error
        except (errors.RayActorError, errors.WorkerCrashedError, errors.OutOfMemoryError):
            return None
        return outcomes

    def _worker(self) -> Any:
        threads = torch.get_num_threads()
        remote = self._ray.remote(**self._options)(_Worker)
        # In a list, so that it is not read before the worker knows where its modules lie.
        return remote.remote(list(sys.path), threads, [self._shared])

    def _ready(self, workers: Sequence[Any]) -> None:
        errors = self._ray.exceptions
        try:
            self._ray.get([worker.ready.remote() for worker in workers])
        except errors.RayError as error:
            raise _told(error) from error

    def _replaced(self, dead: Any) -> Any:
        new = self._worker()
        self._workers[self._workers.index(dead)] = new
        return new


class _Worker:
    """Lives in a process of its own."""

    def __init__(self, path: list[str], threads: int, shared: list[Any]) -> None:
        import ray

        sys.path += [entry for entry in path if entry not in sys.path]
        torch.set_num_threads(threads)
        lesson, make_build, device, together = ray.get(shared[0])
        self.serial = SerialEvaluator(lesson, make_build(), device, together)

    def ready(self) -> None:
        """Return once it can work."""

    def evaluate(self, jobs: Sequence[Job]) -> list[Outcome]:
        """See `SerialEvaluator.evaluate`."""
        return self.serial.evaluate(jobs)


def _require_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ArgumentError(
            "several workers need Ray, which is not installed",
            where="workers",
            remedy="Install the extra: pip install 'transform-compiler[ray]'; or take workers=1.",
        ) from error
    return ray


def _start(ray: Any, workers: int, address: str | None) -> bool:
    """Connect to Ray or start it; whether it was done here."""
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
    if address is None:
        options |= {"address": "local", "num_cpus": workers, "include_dashboard": False}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises its own errors, built-in ones, and plain `Exception`
        raise ArgumentError(
            f"Ray cannot be started or reached: {error}",
            where="workers" if address is None else "address",
            remedy="Check the address, and what `ray status` says; or take workers=1.",
        ) from error
    return True


def _put(ray: Any, value: Any) -> Any:
    try:
        return ray.put(value)
    except Exception as error:  # what pickle raises depends on what it finds
        raise ArgumentError(
            f"the data, the model or a function cannot be sent to workers: {error}",
            where="workers",
            remedy="Make them such as pickle takes (no open files, no local state), or take "
            "workers=1.",
        ) from error


def _told(error: Any) -> TrainingError:
    """What a worker raised, without Ray's own words about it."""
    cause = getattr(error, "cause", None) or error
    what = cause.what if isinstance(cause, CompressionError) else f"{type(cause).__name__}: {cause}"
    return TrainingError(f"a worker fails: {what}", where="workers")
