"""The demonstration: train a small CNN, compress it, export it, check it, measure it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from energy_model.errors import PostconditionError
from energy_model.hardware import load_hardware
from passes.inputs import as_call
from passes.methods.energy_projection import EnergyProjection
from passes.methods.magnitude import Magnitude
from passes.methods.sparsify import SparsifyConfig
from passes.storage.atomic import json_bytes, write_file
from passes.tracing.trace import trace
from transform.arguments import require_free
from transform.cli.progress import counted_steps
from transform.compress import compress
from transform.evaluate import evaluate
from transform.progress import Mode, Progress
from transform.result import Compressed
from transform.text import table
from transform.training.config import TrainConfig

if TYPE_CHECKING:
    from bench.measurement import Report

SHARE = 25
"""Percent of the original energy that the demonstrated model may take."""

TRAINING = TrainConfig(epochs=60, lr=0.05, distill=0.5)
"""Some seconds for so small a network."""

HOLD = 0.4
"""Share of the training at the final budget."""

HONEST = (
    "Zeros make nothing faster in ONNX Runtime, and the file no smaller before zstd: it multiplies "
    "a zero like any other number. What makes the file smaller is that dead channels are gone. The "
    "energy is a model of an accelerator that skips zeros "
    "(profile eyeriss), not a measurement."
)
TRAINED = (
    "One shot sets weights to zero and trains nothing afterwards. Trained: all weights are trained "
    "further while the budget falls, and projected onto it every few steps (Yang, Zhu, Liu, ICLR "
    "2019); the best epoch is chosen on the validation digits, accuracy is on the test digits."
)

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained classifier and its data; nothing is selected on the test batches."""

    model: nn.Module
    train: Batches
    valid: Batches
    test: Batches

    @property
    def example(self) -> Tensor:
        """One batch of images, `(N, 1, 8, 8)`."""
        return self.train[0][0]

    def compressed(
        self, method: SparsifyConfig, training: TrainConfig | Literal[False]
    ) -> Compressed:
        """The model at its share of the energy."""
        return compress(
            self.model,
            f"energy<={SHARE}%",
            self.train,
            valid=self.valid,
            method=method,
            train=training,
        )

    def score(self, model: nn.Module) -> str:
        """Accuracy on the test digits, as text."""
        share = evaluate(model, self.test, torch.device("cpu"))
        return "not measured" if share is None else f"{share:.2%}"


def run_demo(out: Path | None = None, progress: Mode = "none", epochs: int = 15) -> str:
    """Run the demonstration on scikit-learn's bundled digits.

    Args:
        out: New folder for the files; `None` is the first free of `demo-output`,
            `demo-output-2`, ... in the current directory.
        progress: How progress is shown on the standard error stream.
        epochs: Passes over the training images.

    Returns:
        The report, as it is also written to `report.txt`; it ends with the folder's name.

    Raises:
        StorageError: The folder exists, or cannot be written.
        PostconditionError: The certificate does not hold against the exported file.
    """
    folder = require_free(out) or free_folder()
    show = Progress(progress)
    with one_thread():
        with show.stage("training a small CNN on the digits"):
            subject = train(epochs)
        with show.stage(f"compressing it to {SHARE} % of its energy"):
            result = subject.compressed(EnergyProjection(hold=HOLD), TRAINING)
            rivals = _rivals(subject, result)
        with show.stage("exporting both, and checking the certificate"):
            paths = _write(subject, result, folder)
    report = _measure(paths, result, progress)
    with show.stage("plotting"):
        _plot(result, report, folder)
    text = _text(result, rivals, report, folder)
    write_file(folder / "report.txt", f"{text}\n".encode())
    return text


def free_folder(name: str = "demo-output") -> Path:
    """The first of `name`, `name-2`, `name-3`, ... that does not exist."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(path for path in map(Path, names) if not path.exists())


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: on so small a network, several mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(epochs: int, seed: int = 0) -> Subject:
    """The digits CNN, trained; the same on every run with one thread."""
    from bench.zoo import digits_batches, digits_cnn, train_digits

    batches, valid, test = digits_batches(seed=seed)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        model = digits_cnn()
    train_digits(model, batches, epochs, seed)
    return Subject(model.eval(), batches, valid, test)


def _rivals(subject: Subject, result: Compressed) -> str:
    """Accuracy of both methods at equal energy, as text."""
    images = sum(len(targets) for _, targets in subject.test)
    original = subject.score(subject.model)
    energy, magnitude = EnergyProjection(hold=HOLD), Magnitude(hold=HOLD)
    rows = [
        ["original", "100 %", original, original],
        [
            "one shot",
            f"{SHARE} %",
            *(subject.score(subject.compressed(m, False).model) for m in (energy, magnitude)),
        ],
        [
            "trained",
            f"{SHARE} %",
            subject.score(result.model),
            subject.score(subject.compressed(magnitude, TRAINING).model),
        ],
    ]
    grid = table(["", "energy", "method 'energy'", "method 'magnitude'"], rows)
    return f"accuracy on {images} test digits, both methods at equal energy\n{grid}"


def _write(subject: Subject, result: Compressed, folder: Path) -> tuple[Path, Path]:
    """Both ONNX files and the saved result; the certificate is checked by other code than ours.

    Raises:
        PostconditionError: A claim of the certificate differs from what the file holds.
    """
    from bench.check_certificate import check
    from export.dense import write_dense

    graph = trace(subject.model, as_call(subject.model, subject.example))
    original = write_dense(graph, load_hardware("eyeriss"), folder / "original.onnx").path
    exported = result.export(folder / "compressed.onnx")
    result.save(folder / "saved")
    if differences := check(exported.certificate):
        raise PostconditionError(
            f"the certificate does not hold: {'; '.join(differences)}",
            where=str(exported.certificate),
            remedy="This is an error of ours; please report it.",
        )
    return original, exported.path


def _measure(paths: tuple[Path, Path], result: Compressed, progress: Mode) -> Report:
    from bench.measure import measure

    energies = [costs.total.energy.relaxed for costs in (result.costs.before, result.costs.after)]
    with counted_steps(progress) as steps:
        return measure(paths, energies=energies, progress=steps)


def _plot(result: Compressed, report: Report, folder: Path) -> None:
    from bench.plots import plot_energy, plot_latency

    plot_energy(result.costs.before, result.costs.after, folder / "energy.png")
    plot_latency(report, folder / "latency.png")
    write_file(folder / "bench.json", json_bytes(report.to_dict()))


def _text(result: Compressed, rivals: str, report: Report, folder: Path) -> str:
    files = "\n".join(
        f"  {name:<32}{what}"
        for name, what in (
            ("original.onnx, compressed.onnx", "the networks"),
            ("compressed.certificate.json", "limits and counts; recounted from compressed.onnx"),
            ("saved/", "for transform.load and `transform export`"),
            ("energy.png, latency.png", "the plots"),
            ("report.txt, bench.json", "this report, and the measurements"),
        )
    )
    return "\n\n".join(
        [
            repr(result),
            rivals,
            TRAINED,
            "certificate: recounted from compressed.onnx by bench/check_certificate.py, all agrees",
            f"measured in ONNX Runtime\n{report}",
            HONEST,
            f"The files are in {folder}:\n{files}",
        ]
    )
