"""How fast archives are packed and unpacked: `python -m bench.archive_speed`.

The weights of ResNet-50, as they are initialised and as compression leaves them. Speeds are those
of the weights as float32, whatever type they have in the file, and ratios are to zstandard, level
3, on the same file in the same rounds. On a machine that others use, the speed by the time of the
processor is nearer to that of an idle one. Memory is the rise of a process's peak, over the
weights.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
import zstandard
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench.measure import machine_name
from bench.speed.memory import extra_bytes
from bench.speed.rounds import clocked, interleave
from bench.speed.subjects import RESNET50, Subject
from bench.speed.subprocesses import run_python
from energy_model.errors import ArgumentError
from export.archive import pack, unpack_bytes

LEVEL = 3
LEVELS = 16
KEPT = 0.1

Array = NDArray[np.float32]


def few_levels(weight: Array) -> Array:
    """The largest tenth of a weight on 16 levels, zeros elsewhere."""
    threshold = np.quantile(np.abs(weight), 1 - KEPT)
    width = (2 * np.abs(weight).max() or 1) / LEVELS
    levels = (np.floor(weight / width) + 0.5) * width
    kept = (weight != 0) & (np.abs(weight) >= threshold)
    return np.where(kept, levels, 0).astype(np.float32)


def codes(weight: Array) -> NDArray[np.int8]:
    """A weight in eight bits."""
    return np.round(weight * (127 / (np.abs(weight).max() or 1))).astype(np.int8)


def unchanged(weight: Array) -> Array:
    """A weight as it is."""
    return weight


CASES: dict[str, Callable[[Array], NDArray[np.generic]]] = {
    "10 % of the weights, 16 levels": few_levels,
    "8-bit codes, dense": codes,
    "float32 as initialised": unchanged,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of weights.

    Attributes:
        name: The kind.
        weights: How many.
        bytes: Size of the ONNX file.
        archive: Size of the archive.
        zstd: Size by zstandard.
        pack_mb_s: Median speed of packing, the proof that the file comes back included.
        unpack_mb_s: Median speed of unpacking.
        pack_cpu_mb_s: The first by the time of the processor.
        unpack_cpu_mb_s: The second by the time of the processor.
        pack_ratio: Median over the rounds of the time of packing over that of zstandard.
        unpack_ratio: The same of unpacking.
        pack_memory: Extra memory while packing, over the bytes of the weights as float32.
        unpack_memory: The same while unpacking; it includes the file.
    """

    name: str
    weights: int
    bytes: int
    archive: int
    zstd: int
    pack_mb_s: float
    unpack_mb_s: float
    pack_cpu_mb_s: float
    unpack_cpu_mb_s: float
    pack_ratio: float
    unpack_ratio: float
    pack_memory: float
    unpack_memory: float


def model_bytes(subject: Subject, change: Callable[[Array], NDArray[np.generic]]) -> bytes:
    """An ONNX file of the parameters of a model, those with several dimensions changed."""
    tensors = []
    for name, parameter in subject.model().named_parameters():
        values = parameter.detach().numpy()
        values = change(values) if values.ndim > 1 else values
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    graph = helper.make_graph([], "main_graph", [value], [value], tensors)
    content: bytes = helper.make_model(graph).SerializeToString()
    return content


def measured(name: str, subject: Subject, rounds: int) -> Row:
    """Measure one kind of weights."""
    model = model_bytes(subject, CASES[name])
    archive = pack(model)
    packer, unpacker = zstandard.ZstdCompressor(LEVEL), zstandard.ZstdDecompressor()
    packed = packer.compress(model)
    actions = [
        partial(packer.compress, model),
        partial(pack, model),
        partial(unpacker.decompress, packed),
        partial(unpack_bytes, archive),
    ]
    spent: list[list[float]] = [[] for _ in actions]
    turns = [clocked(counted(action, into)) for action, into in zip(actions, spent, strict=True)]
    times = np.array(interleave(turns, rounds))
    weights = weight_count(model)
    size = 4 * weights
    memory = json.loads(
        run_python("-m", "bench.archive_speed", "--memory", name, "--factory", subject.factory)
    )
    return Row(
        name, weights, len(model), len(archive), len(packed),
        pack_mb_s=size / 1e6 / statistics.median(times[:, 1]),
        unpack_mb_s=size / 1e6 / statistics.median(times[:, 3]),
        pack_cpu_mb_s=size / 1e6 / statistics.median(spent[1]),
        unpack_cpu_mb_s=size / 1e6 / statistics.median(spent[3]),
        pack_ratio=float(np.median(times[:, 1] / times[:, 0])),
        unpack_ratio=float(np.median(times[:, 3] / times[:, 2])),
        pack_memory=memory["pack"] / size,
        unpack_memory=memory["unpack"] / size,
    )  # fmt: skip


def counted(action: Callable[[], object], into: list[float]) -> Callable[[], object]:
    """The action, with its seconds of the processor appended to a list."""

    def run() -> object:
        start = time.process_time()
        result = action()
        into.append(time.process_time() - start)
        return result

    return run


def weight_count(model: bytes) -> int:
    """Elements of all tensors of a file."""
    tensors = onnx.load_model_from_string(model).graph.initializer
    return int(sum(np.prod(tensor.dims, dtype=np.int64) for tensor in tensors))


def memory_of(name: str, subject: Subject) -> dict[str, int]:
    """Extra bytes while one kind of weights is packed, and while it is unpacked."""
    model = model_bytes(subject, CASES[name])
    archive = pack(model)
    return {
        "pack": extra_bytes(partial(pack, model)),
        "unpack": extra_bytes(partial(unpack_bytes, archive)),
    }


def table(rows: list[Row], rounds: int) -> str:
    """The rows in Markdown."""
    lines = [
        f"{machine_name()}, {os.cpu_count()} cores, one thread; {rounds} interleaved rounds; "
        f"load {os.getloadavg()[0]:.1f}. Ratios: time over that of zstandard, level {LEVEL}.",
        "",
        "| weights | file, bytes | archive | zstd | pack, MB/s | by CPU time | ratio "
        "| unpack, MB/s | by CPU time | ratio | extra memory, pack | unpack |",
        "|---|" + "---:|" * 11,
    ]
    lines += [
        f"| {row.name} | {row.bytes:,} | {row.archive:,} | {row.zstd:,} "
        f"| {row.pack_mb_s:.1f} | {row.pack_cpu_mb_s:.1f} | {row.pack_ratio:.1f} "
        f"| {row.unpack_mb_s:.1f} | {row.unpack_cpu_mb_s:.1f} | {row.unpack_ratio:.1f} "
        f"| {row.pack_memory:.2f} | {row.unpack_memory:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Also write a JSON file there.")] = None,
    factory: Annotated[str, typer.Option(help="Another model.")] = RESNET50.factory,
    memory: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure packing and unpacking; a minute or two on an otherwise idle machine."""
    subject = Subject(factory, factory, ())
    if memory is not None:
        print(json.dumps(memory_of(memory, subject)))
        return
    if rounds < 1:
        raise ArgumentError(f"{rounds} is too few", where="rounds", remedy="Give at least 1.")
    rows = []
    for name in CASES:
        typer.echo(f"measuring {name} (load {os.getloadavg()[0]:.1f})", err=True)
        rows.append(measured(name, subject, rounds))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine_name(), "rounds": rounds, "rows": [asdict(r) for r in rows]}
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    typer.echo(table(rows, rounds))


if __name__ == "__main__":
    typer.run(main)
