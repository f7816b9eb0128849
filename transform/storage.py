"""Saved results: safetensors and JSON, no pickle, no exec."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from energy_model.budget import Budget
from energy_model.cost import CostTable
from energy_model.errors import CompressionError, StorageError
from energy_model.resolved import ResolvedLimit
from energy_model.timing import Timing
from passes.embedding.encoder import ENCODER_FILES, load_encoders, save_encoders
from passes.graph import Decision
from passes.inputs import Call, one_sample
from passes.joint.codebook import Codebook
from passes.methods.embedding.record import SearchRecord
from passes.methods.plan import Plan
from passes.quantize.encoding import Encoding
from passes.quantize.widths import apply_widths
from passes.rewrite.fit_shapes import fit_shapes
from passes.storage.atomic import json_bytes, read_json, storage_errors, write_file, write_folder
from passes.storage.graph_json import (
    as_graph,
    calls_custom_functions,
    custom_functions,
    graph_from_json,
    graph_state,
    graph_to_json,
)
from passes.storage.modules import model_class_name
from passes.storage.tensors import check_sha256, load_tensors, save_tensors, sha256_file
from passes.storage.tree import pack_tree, unpack_tree
from passes.tracing.trace import trace
from transform.certificate import Certificate
from transform.require import require_model
from transform.sizes import Sizes

if TYPE_CHECKING:
    from transform.result import Compressed

FORMAT = "transform-compressed"
VERSION = 1
# Where a training run keeps its checkpoints, below its output folder.
CHECKPOINTS = "checkpoints"
_INDEX = "compressed.json"
FILES = (
    *(_INDEX, "model.onnx", "model.certificate.json", "archive.packed", "archive.certificate.json"),
    *("weights.safetensors", "report.txt"),
    *ENCODER_FILES,
)
_EXAMPLE = "example:"
_ENCODING = "encoding:"
_CODEBOOK = "codebook:"
_FIELDS: dict[str, type] = {
    "class": str,
    "training": dict,
    "keys": list,
    "method": str,
    "config": dict,
    "limits": list,
    "certificate": dict,
    "decisions": list,
    "plan": dict,
    "history": list,
    "metrics": dict,
    "costs": dict,
    "weights_sha256": str,
    "aliases": dict,
    "example": dict,
}


def save(result: Compressed, directory: Path, *, onnx: bool) -> Path:
    """Write a result to a new folder, all of it or nothing; see `Compressed.save`."""
    graph = result.graph
    # A rewritten model is a graph itself; traced anew, its state would come in another order.
    stored = as_graph(graph.module) if graph.rewritten else graph.graph_module
    tensors, aliases = _tensors(graph.module, {} if stored is None else graph_state(stored))
    example, structure = _example(graph.call)
    scales = {f"{_ENCODING}{name}": e.scale.cpu() for name, e in graph.encodings.items()}
    levels = {f"{_CODEBOOK}{name}": c.levels.cpu() for name, c in graph.codebooks.items()}
    with (
        storage_errors(directory),
        tempfile.TemporaryDirectory(prefix="transform-save-") as folder,
    ):
        weights = Path(folder) / "weights.safetensors"
        save_tensors(weights, tensors | example | scales | levels)
        description = _describe(result) | {
            "weights_sha256": sha256_file(weights),
            "aliases": aliases,
            "example": structure,
            "graph": None if stored is None else graph_to_json(stored),
            "encodings": {
                name: {"bits": e.bits, "axis": e.axis, "block": e.block}
                for name, e in graph.encodings.items()
            },
            "codebooks": {name: _codebook_json(c) for name, c in graph.codebooks.items()},
        }
        files: dict[str, bytes] = {}
        if onnx:
            exported = result.export(Path(folder) / "model.onnx")
            files["model.onnx"] = exported.path.read_bytes()
            files["model.certificate.json"] = exported.certificate.read_bytes()
            if any(limit.key == "archive" for limit in result.limits):
                packed = result.export(Path(folder) / "archive.packed", "packed")
                files["archive.packed"] = packed.path.read_bytes()
                files["archive.certificate.json"] = packed.certificate.read_bytes()
        if result.search is not None and result.search.encoders:
            beside = Path(folder) / "encoders"
            save_encoders(beside, result.search.encoders)
            files |= {name: (beside / name).read_bytes() for name in ENCODER_FILES}
        files["weights.safetensors"] = weights.read_bytes()
        files[_INDEX] = json_bytes(_sealed(description))
        files["report.txt"] = f"{result!r}\n".encode()
        _write(directory, files)
    return directory


def _write(directory: Path, files: dict[str, bytes]) -> None:
    """All at once into a new folder; beside the checkpoints of a run, the index last."""
    checkpoints = directory / CHECKPOINTS
    if not checkpoints.is_dir():
        write_folder(directory, files)
        return
    for name in sorted(files, key=lambda n: n == _INDEX):
        write_file(directory / name, files[name])
    for left in directory.glob(".*.partial"):
        left.unlink()
    shutil.rmtree(checkpoints)


def _describe(result: Compressed) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "class": model_class_name(result.model),
        "rewritten": result.graph.rewritten,
        "training": {path: module.training for path, module in result.model.named_modules()},
        "keys": list(result.model.state_dict()),
        "method": result.method,
        "config": dict(result.config),
        "limits": [
            {"limit": str(x.limit), "base": x.base, "maximum": x.maximum}
            | ({"base_spread": x.base_spread} if x.base_spread else {})
            for x in result.limits
        ],
        "certificate": result.certificate.to_dict(),
        "decisions": [decision.to_dict() for decision in result.decisions],
        "plan": result.plan.to_dict(),
        "history": result.history,
        "metrics": result.metrics,
        "bases": result.bases,
        "sizes": None if result.sizes is None else result.sizes.to_dict(),
        "timing": None if (timing := result.timing) is None else timing.to_dict(),
        "search": None if result.search is None else result.search.to_dict(),
        "costs": {
            "before": result.costs.before.to_dict(),
            "after": result.costs.after.to_dict(),
        },
    }


def _tensors(
    module: nn.Module, tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, and the names under which it is known besides.

    Args:
        module: The model.
        tensors: Those that its graph needs; taken up.
    """
    first = {_identity(tensor): name for name, tensor in tensors.items()}
    aliases: dict[str, str] = {}
    for name, tensor in module.state_dict().items():
        known = first.setdefault(_identity(tensor), name)
        if known != name:
            aliases[name] = known
        elif name not in tensors:
            tensors[name] = tensor.detach().contiguous()
    return tensors, aliases


def _identity(tensor: Tensor) -> object:
    if tensor.numel() == 0:
        return id(tensor)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.dtype


def _example(call: Call) -> tuple[dict[str, Tensor], Any]:
    """One synthetic sample: what is saved of the data is its shape, not its values."""
    sample = one_sample(call)
    tensors: dict[str, Tensor] = {}
    return tensors, pack_tree([sample.args, dict(sample.kwargs)], tensors, _EXAMPLE)


def _sealed(description: dict[str, Any]) -> dict[str, Any]:
    """Add a digest of everything else, so that damage anywhere is noticed."""
    return description | {"sha256": _digest(description)}


def _digest(description: Mapping[str, Any]) -> str:
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def load(directory: str | Path, model: nn.Module | None = None) -> Compressed:
    """Load what `Compressed.save` wrote.

    Args:
        directory: The folder.
        model: An instance of the original class, with any weights. With it the result's model is of
            that class; without it the model is rebuilt from the saved graph, which needs every
            layer to be of torch or torchvision. A graph that a method has rewritten (input masks)
            is always rebuilt: then only those layers and functions are taken from `model` that are
            the user's own, and without any it is ignored.

    Returns:
        The result as it was saved. Its model is in the mode in which it was: call `eval()` before
        running one that was saved in training mode.

    Raises:
        StorageError: The folder is missing, damaged, of another version, or needs `model=`.
    """
    folder = Path(directory)
    description = read_json(folder / _INDEX)
    where = str(folder)
    if description.get("format") != FORMAT or description.get("version") != VERSION:
        raise StorageError(
            f"not a saved result of version {VERSION}",
            where=where,
            remedy="Save it again with this release.",
        )
    if description.pop("sha256", None) != _digest(description):
        raise _damaged(where, "compressed.json does not match its digest")
    if model is not None:
        require_model(model)
    weights = folder / "weights.safetensors"
    for field, kind in _FIELDS.items():
        if not isinstance(description.get(field), kind):
            raise _damaged(where, f"{field!r} is {type(description.get(field)).__name__}")
    check_sha256(weights, description["weights_sha256"])
    try:
        return _with_encoders(_restored(description, load_tensors(weights), model, where), folder)
    except CompressionError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _damaged(where, f"{type(error).__name__}: {error}") from error


def _damaged(where: str, why: str) -> StorageError:
    return StorageError(
        f"the saved folder is damaged: {why}", where=where, remedy="Save the result again."
    )


def _restored(
    description: dict[str, Any], tensors: dict[str, Tensor], model: nn.Module | None, where: str
) -> Compressed:
    from transform.result import Compressed, Costs

    aliases = description["aliases"]
    apart = (_EXAMPLE, _ENCODING, _CODEBOOK)
    state = {k: v for k, v in tensors.items() if not k.startswith(apart)}
    args, kwargs = unpack_tree(description["example"], tensors)
    call = Call(tuple(args), kwargs)
    rewritten = description.get("rewritten", False)
    if not isinstance(rewritten, bool):
        raise _damaged(where, f"'rewritten' is {type(rewritten).__name__}")
    if model is None or rewritten:
        module = _rebuilt(description, state, model, call, where)
    else:
        module = _filled(description, state, aliases, model, call, where)
    graph = trace(module, call)
    graph.rewritten = rewritten
    graph.encodings = _encodings(description, tensors)
    for name, encoding in graph.encodings.items():
        encoding.check(graph.weight(graph.by_name[name]), name)
    graph.codebooks = _codebooks(description, tensors)
    for name, codebook in graph.codebooks.items():
        codebook.check(graph.weight(graph.by_name[name]), name)
    apply_widths(graph)
    decisions = tuple(Decision(**item) for item in description["decisions"])
    graph.decisions[:] = decisions
    limits = []
    for item in description["limits"]:
        [limit] = Budget.parse(item["limit"]).limits
        spread = item.get("base_spread", 0.0)
        limits.append(ResolvedLimit(limit, item["base"], item["maximum"], spread))
    return Compressed(
        model=module,
        certificate=Certificate.from_dict(description["certificate"]),
        decisions=decisions,
        plan=Plan.from_dict(description["plan"]),
        costs=Costs(*(CostTable.from_dict(description["costs"][k]) for k in ("before", "after"))),
        method=description["method"],
        config=description["config"],
        limits=tuple(limits),
        graph=graph,
        metrics=description["metrics"],
        history=description["history"],
        bases=description.get("bases", {}),
        sizes=Sizes.from_dict(sizes) if (sizes := description.get("sizes")) else None,
        timing=Timing(**timing) if (timing := description.get("timing")) else None,
        search=SearchRecord.from_dict(found) if (found := description.get("search")) else None,
    )


def _with_encoders(result: Compressed, folder: Path) -> Compressed:
    """With what its search has learned, if that lies beside it."""
    if result.search is not None and (folder / ENCODER_FILES[-1]).exists():
        encoders = tuple(load_encoders(folder))
        result.search = dataclasses.replace(result.search, encoders=encoders)
    return result


def _encodings(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Encoding]:
    """How quantized weights are written; results of older releases have none."""
    return {
        name: Encoding(how["bits"], tensors[f"{_ENCODING}{name}"], how["axis"], how["block"])
        for name, how in description.get("encodings", {}).items()
    }


def _codebook_json(codebook: Codebook) -> dict[str, Any]:
    return {
        "bits": codebook.bits,
        "kind": codebook.kind,
        "reserved_zero": codebook.reserved_zero,
        "scale": codebook.scale,
    }


def _codebooks(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Codebook]:
    """The codebooks of weights; results of older releases have none."""
    return {
        name: Codebook(
            tensors[f"{_CODEBOOK}{name}"],
            how["bits"],
            kind=how["kind"],
            reserved_zero=how["reserved_zero"],
            scale=how["scale"],
        )
        for name, how in description.get("codebooks", {}).items()
    }


def _rebuilt(
    description: dict[str, Any],
    state: dict[str, Tensor],
    model: nn.Module | None,
    call: Call,
    where: str,
) -> nn.Module:
    """The model from its saved graph; what is the user's own comes from `model`."""
    data = description["graph"]
    if data is None:
        raise StorageError(
            f"the model could not be traced, so only its weights were saved; its class is "
            f"{description['class']}",
            where=where,
            remedy="Pass model=, an instance of that class.",
        )
    if model is None:
        return graph_from_json(data, state)
    functions = _functions(model, call, where) if calls_custom_functions(data) else {}
    return graph_from_json(
        data, state, dict(model.named_modules(remove_duplicate=False)), functions
    )


def _functions(model: nn.Module, call: Call, where: str) -> dict[str, Callable[..., Any]]:
    """The user's own functions that a model calls in its forward, by name."""
    try:
        traced = trace(model, call, train=False).graph_module
    except CompressionError as error:
        raise StorageError(
            f"the saved graph calls functions of the model's own, and the {type(model).__name__} "
            f"given does not run: {error.what}",
            where=where,
            remedy="Pass model=, an instance of the class that was compressed.",
        ) from error
    return {} if traced is None else custom_functions(traced)


def _fit(module: nn.Module, state: dict[str, Tensor], call: Call) -> None:
    with contextlib.suppress(Exception):  # what does not fit is told when the weights are loaded
        fit_shapes(module, state, call)


def _filled(
    description: dict[str, Any],
    state: dict[str, Tensor],
    aliases: Mapping[str, str],
    model: nn.Module,
    call: Call,
    where: str,
) -> nn.Module:
    """A copy of the user's model with the saved weights, without the channels that were removed."""
    module = copy.deepcopy(model)
    full = state | {name: state[known] for name, known in aliases.items()}
    if list(module.state_dict()) == description["keys"]:
        _fit(module, full, call)
    why = "its state-dict keys are others"
    if list(module.state_dict()) == description["keys"]:
        try:
            module.load_state_dict({key: full[key] for key in description["keys"]})
        except RuntimeError as error:
            why = str(error).splitlines()[-1].strip()
        else:
            flags = description["training"]
            for path, part in module.named_modules():
                part.training = flags.get(path, flags[""])
            return module
    raise StorageError(
        f"the saved weights do not fit {type(model).__name__}: {why}",
        where=where,
        remedy=f"Pass an instance of {description['class']} as it was compressed.",
    )
