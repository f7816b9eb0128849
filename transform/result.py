"""The result of `compress`: a plain model and everything that is known about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from energy_model.cost import CostTable
from energy_model.errors import ExportError, PostconditionError
from energy_model.resolved import ResolvedLimit
from energy_model.timing import Timing
from passes.graph import Decision, ModelGraph
from passes.methods.embedding.record import SearchRecord
from passes.methods.plan import Plan
from passes.storage.atomic import write_file
from transform.certificate import REMEASURE, Certificate, Source, certify
from transform.forms import write
from transform.limits import Subject, reached_value
from transform.sizes import Sizes

if TYPE_CHECKING:
    from export.dense import Written


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of every layer of the original and of the finished model."""

    before: CostTable
    after: CostTable


def smaller_layers(costs: Costs) -> bool:
    """Whether a layer has another shape than in the original."""
    before, after = costs.before.total, costs.after.total
    return (before.weights, before.dense) != (after.weights, after.dense)


@dataclass(frozen=True, slots=True)
class Export:
    """An exported file, checked.

    Attributes:
        path: The file.
        form: How the weights are stored.
        bytes: Its size.
        bytes_zstd: Its size after zstandard.
        max_abs_error: Largest difference to torch of any output element.
        top1_agreement: Share of rows with the same largest output; `None` without such an output.
        certificate: The certificate that was counted from the file, beside it.
        notes: What a user of the file must know.
        census: How often each kind of operator runs in ONNX Runtime's own optimised graph; empty
            where the file holds floats only.
        modes: Largest difference to torch by numeric mode of the runtime, for integer files.
    """

    path: Path
    form: str
    bytes: int
    bytes_zstd: int
    max_abs_error: float
    top1_agreement: float | None
    certificate: Path
    notes: tuple[str, ...] = ()
    census: Mapping[str, int] = field(default_factory=dict)
    modes: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Compressed:
    """A compressed model.

    Attributes:
        model: A plain module in the mode of the original. When no shape changed it is an instance
            of the caller's class with the same state-dict keys.
        certificate: What was asked and what was reached.
        decisions: What every pass decided, and why.
        plan: What the method decided before it touched a weight.
        history: One row per event.
        costs: Costs `.before` and `.after`.
        metrics: Accuracy `"before"` and `"after"`; `None` means not measured.
        method: Name of the method.
        config: Its configuration.
        limits: The budget in absolute terms.
        graph: The traced model behind `model`.
        bases: Values of the original by the key of a limit, as far as they are known: what budgets
            are relative to when the result is compressed further.
        sizes: The size of the weights in every way of counting, where bits or bytes were limited or
            weights have codebooks.
        timing: How the latency of the original was measured; `None` if no latency was limited.
        search: Every candidate of a search over architectures; `None` if there was none.
    """

    model: nn.Module
    certificate: Certificate
    decisions: tuple[Decision, ...]
    plan: Plan
    costs: Costs
    method: str
    config: Mapping[str, Any]
    limits: tuple[ResolvedLimit, ...]
    graph: ModelGraph = field(repr=False)
    metrics: dict[str, float | None] = field(
        default_factory=lambda: {"before": None, "after": None}
    )
    history: list[dict[str, Any]] = field(default_factory=list)
    bases: dict[str, int | float] = field(default_factory=dict)
    sizes: Sizes | None = None
    timing: Timing | None = None
    search: SearchRecord | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Weights of every layer of the original that could be compressed."""
        computed = "computed in forward"
        return tuple(row.weights for row in self.costs.before if computed not in row.note)

    def export(self, path: str | Path, form: str = "auto", *, opset: int | None = None) -> Export:
        """Write the model as ONNX, prove it, and put its certificate beside it.

        Args:
            path: The file; `NAME.certificate.json` goes beside it.
            form: `"auto"`: quantized models as integers where a limit asks for it, otherwise what
                was measured to be fastest; all others as `"dense"`, or as `"sparse"` where only
                that keeps a limit on the size.
                `"dense"`: ordinary float weights. Zeros stay in the file: they make it no smaller
                and no faster, only cheaper on hardware that skips them. Quantized weights are the
                floats of their levels, and activations are not quantized.
                `"qdq"`: quantized models as integer codes; with quantized activations the runtime
                computes in integers.
                `"sparse"`: positions and values of what is not zero, where that is smaller. The
                runtime unpacks it when it loads: smaller on disk, no faster. Quantized weights stay
                codes. `"sparse_initializers"`: the same in ONNX's own way; larger.
                `"column_groups"`: layers that were compressed with that pattern hold only the
                columns that are kept; the file is smaller, and larger layers run faster.
                `"packed"`: an archive, the smallest of all: positions, codes and everything else
                entropy-coded. No runtime reads it; `export.unpack` gives the ONNX file back bit for
                bit. `"auto"` writes one where the path ends in `.packed`.
            opset: Version of the ONNX operators of the form `"qdq"`, 18 to 25; 21 by default.

        Raises:
            ArgumentError: Unknown form, or an opset for a form that has no choice.
            ExportError: The model has no ONNX form, or no layer has the pattern of the form.
            ParityError: The file disagrees with the model.
            StorageError: The file cannot be written.
        """
        hardware = self.costs.after.hardware
        written = write(self.graph, hardware, Path(path), form, self.limits, opset)
        certificate = self.certify_file(written)
        beside = written.path.with_suffix(".certificate.json")
        write_file(beside, json.dumps(certificate.to_dict(), indent=1).encode())
        return Export(
            written.path,
            written.form,
            written.bytes,
            written.bytes_zstd,
            written.parity.max_abs_error,
            written.parity.top1_agreement,
            beside,
            written.notes,
            written.census,
            written.modes,
        )

    def certify_file(self, written: Written) -> Certificate:
        """The certificate of an exported file, counted from its initialisers.

        Raises:
            PostconditionError: The file holds more than the model: a limit would fail.
        """
        recount = written.recount
        subject = Subject(self.graph, recount.costs.hardware, file=written)
        subject.count_from(recount.costs)
        values = {limit.key: reached_value(limit.key, subject) for limit in self.limits}
        names = {site: stored.name for site, stored in recount.stored.items()}
        inside = None
        if written.inside is not None:
            inside = {"sha256": written.inside.sha256, "bytes": written.inside.bytes}
        source = Source(written.path.name, recount.sha256, written.bytes, inside)
        smaller = smaller_layers(self.costs)
        certificate = certify(self.limits, values, source, recount.costs, names, smaller=smaller)
        failed = certificate.failed
        measured = bool(failed) and failed[0].kind == "measured"
        if self.graph.encodings and failed and not measured:
            raise ExportError(
                f"the form {written.form!r} does not keep {failed[0].asked}: it has "
                f"{failed[0].told(failed[0].reached)}, allowed is "
                f"{failed[0].told(failed[0].maximum)}",
                where=str(written.path),
                remedy=_remedy(written),
            )
        model, file = self.costs.after.total, recount.costs.total
        # As floats, quantized weights cost more than the model does.
        more = file.energy.exact > model.energy.exact and not self.graph.encodings
        if measured and not more:
            raise PostconditionError(
                f"{failed[0].asked} allows {failed[0].told(failed[0].maximum)}, the file takes "
                f"{failed[0].told(failed[0].reached)}",
                where=str(written.path),
                remedy=f"{REMEASURE} form='auto' writes what is fastest."
                if self.graph.encodings
                else REMEASURE,
            )
        if more or failed:
            raise PostconditionError(
                f"the file counts {file.energy.exact:,} (exact energy), the model "
                f"{model.energy.exact:,}",
                where=str(written.path),
                remedy="This is an error of the exporter; please report it with the model.",
            )
        return certificate

    def save(self, directory: str | Path, *, onnx: bool = False) -> Path:
        """Save everything to a new folder: safetensors and JSON, no pickle.

        Args:
            directory: The folder; it must not exist, or be empty.
            onnx: Also export `model.onnx` and its certificate into it.

        Returns:
            The folder.
        """
        from transform.storage import save

        return save(self, Path(directory), onnx=onnx)

    def __repr__(self) -> str:
        from transform.report import one_screen

        return one_screen(self)


def _remedy(written: Written) -> str:
    """What helps where a form of a quantized model does not keep the budget."""
    if written.form != "qdq":
        return "Export with form='auto' or 'qdq'."
    floats = [note for note in written.notes if note.startswith("float weights")]
    told = f" It has {'; '.join(floats)}." if floats else ""
    return f"Compress anew with a looser budget, or with activations=None.{told}"
