"""A traced model as JSON, and back.

The JSON holds the nodes, the modules and a record of every tensor; the tensors themselves are the
state (see `graph_state`). Loading treats all of it as untrusted: every name is looked up in the
allow-list or checked to be a plain identifier before fx generates code from the nodes, which is the
only code that runs. A hostile file can waste time or memory; it cannot run code or touch files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen

from energy_model.errors import StorageError
from passes.storage.allow_list import is_identifier, is_path
from passes.storage.modules import build_module, describe_module, is_container
from passes.storage.nodes import decode_nodes, encode_node
from passes.storage.state import TensorRecord, assign_tensors, graph_state, tensor_records
from passes.storage.values import damaged

__all__ = [
    "as_graph",
    "calls_custom_functions",
    "custom_functions",
    "graph_from_json",
    "graph_state",
    "graph_to_json",
]

_FORMAT = "fx-graph"
_VERSION = 1
_KEYS = {"format", "version", "name", "modules", "training", "tensors", "nodes"}


def graph_to_json(graph_module: fx.GraphModule) -> dict[str, Any]:
    """Write a graph module as JSON, without its tensors.

    Types, metadata and stack traces of the nodes are not kept; names, arguments, training flags,
    ties between tensors and `requires_grad` are.

    Args:
        graph_module: Any traced model. What is neither of torch or torchvision nor storable is
            written by the name of its class, and must be brought along when loading.

    Returns:
        A JSON object. The tensors that belong to it are those of `graph_state`.

    Raises:
        StorageError: The graph holds something that cannot be written down.
    """
    if type(graph_module.graph._codegen) is not CodeGen:
        raise StorageError(
            "the graph generates its code in a special way (pytree inputs)",
            where=type(graph_module).__name__,
            remedy="Trace the model without nested concrete_args.",
        )
    name = graph_module.__class__.__name__
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "name": name if is_identifier(name) else "GraphModule",
        "modules": _describe_modules(graph_module),
        "training": _training_flags(graph_module),
        "tensors": [_checked_record(record) for record, _ in tensor_records(graph_module)],
        "nodes": [encode_node(node) for node in graph_module.graph.nodes],
    }


def graph_from_json(
    data: Mapping[str, Any],
    state: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module] | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> fx.GraphModule:
    """Rebuild a graph module.

    Args:
        data: What `graph_to_json` returned; untrusted.
        state: What `graph_state` returned. The model takes these tensors as its own, uncopied.
        modules: The user's own modules by path, for those that were stored by name. They are
            copied, and must have the shapes of the saved ones.
        functions: The user's own functions by name (see `custom_functions`), likewise.

    Returns:
        The model, on the device of `state`, with the training flags of the original.

    Raises:
        StorageError: The data is damaged, of another version, names something outside the
            allow-list, does not fit the state, or needs a module that was not given.
    """
    if data.get("format") != _FORMAT or data.get("version") != _VERSION or set(data) != _KEYS:
        raise StorageError(
            f"not a stored graph of version {_VERSION}",
            where="graph",
            remedy="It is damaged, or was written by another version: save the model again.",
        )
    if not is_identifier(data["name"]):
        raise damaged(f"the class name {data['name']!r}", "graph")
    try:
        root = fx.GraphModule(nn.Module(), fx.Graph(), class_name=data["name"])
        _add_modules(root, _items(data["modules"], "modules"), modules or {})
        records = [TensorRecord.from_json(item) for item in _items(data["tensors"], "tensors")]
        assign_tensors(root, records, state)
        root.graph = decode_nodes(_items(data["nodes"], "nodes"), root, functions or {})
    except (RecursionError, SyntaxError, IndexError) as error:
        # Inputs in an order that no function can have, or something nested without end.
        raise damaged("a graph that is no function", "graph") from error
    _restore_training(root, data["training"])
    return root


def custom_functions(graph_module: fx.GraphModule) -> dict[str, Callable[..., Any]]:
    """The functions of a graph that are not on the allow-list, by the name they are stored under.

    Trace the user's model again and hand these to `graph_from_json`.
    """
    found = {}
    for node in graph_module.graph.nodes:
        target = encode_node(node)["target"]
        if isinstance(target, dict):
            found[target["custom"]] = node.target
    return found


def as_graph(model: nn.Module) -> fx.GraphModule | None:
    """The model itself, if it is a graph."""
    return model if isinstance(model, fx.GraphModule) else None


def calls_custom_functions(data: Mapping[str, Any]) -> bool:
    """Whether a stored graph calls functions that `graph_from_json` must be handed."""
    nodes = _items(data.get("nodes"), "nodes")
    targets = (node.get("target") for node in nodes if isinstance(node, dict))
    return any(isinstance(target, dict) for target in targets)


def _describe_modules(root: fx.GraphModule) -> list[dict[str, Any]]:
    first_path: dict[int, str] = {}
    return list(_descriptions(root, "", first_path))


def _descriptions(
    parent: nn.Module, prefix: str, first_path: dict[int, str]
) -> Iterator[dict[str, Any]]:
    """One record for each module that its parent does not rebuild, parents first."""
    for name, module in parent._modules.items():
        if module is None:
            continue
        path = prefix + name
        if not is_path(path):
            raise StorageError(
                "a module of this name cannot be stored", where=path, remedy="Rename the module."
            )
        original = first_path.setdefault(id(module), path)
        if original != path:
            yield {"path": path, "same_as": original}
            continue
        yield {"path": path} | describe_module(module, path)
        if is_container(module):
            yield from _descriptions(module, f"{path}.", first_path)


def _add_modules(root: nn.Module, records: list[Any], modules: Mapping[str, nn.Module]) -> None:
    built: dict[str, nn.Module] = {}
    for record in records:
        if not isinstance(record, dict) or not is_path(record.get("path")):
            raise damaged("a malformed module record", "modules")
        path = str(record["path"])
        parent_path, _, name = path.rpartition(".")
        parent = built.get(parent_path) if parent_path else root
        if parent is None or not is_container(parent) or name in parent._modules:
            raise damaged("a module out of place", path)
        description = {key: value for key, value in record.items() if key != "path"}
        if list(description) == ["same_as"]:
            built[path] = _built_before(built, description["same_as"], path)
        else:
            built[path] = build_module(description, path, modules)
        parent.add_module(name, built[path])


def _built_before(built: Mapping[str, nn.Module], original: object, path: str) -> nn.Module:
    inside = isinstance(original, str) and path.startswith(f"{original}.")
    if not isinstance(original, str) or original not in built or inside:
        raise damaged(f"a second place of {original!r}, which does not come before", path)
    return built[original]


def _checked_record(record: TensorRecord) -> dict[str, Any]:
    if is_path(record.path):
        return record.to_json()
    raise StorageError(
        "a tensor of this name cannot be stored", where=record.path, remedy="Rename the attribute."
    )


def _training_flags(root: nn.Module) -> dict[str, Any]:
    """The flag of the root, and the paths of the modules whose flag is another."""
    flags = {path: module.training for path, module in root.named_modules(remove_duplicate=False)}
    return {"root": flags[""], "others": [p for p, flag in flags.items() if flag != flags[""]]}


def _restore_training(root: nn.Module, data: object) -> None:
    flags = data if isinstance(data, dict) else {}
    flag, others = flags.get("root"), flags.get("others")
    if not isinstance(flag, bool) or not isinstance(others, list) or len(flags) != 2:
        raise damaged("malformed training flags", "training")
    found = dict(root.named_modules(remove_duplicate=False))
    if not all(isinstance(path, str) and path in found for path in others):
        raise damaged("the training flag of a module that is not there", "training")
    different = set(others)
    for path, module in found.items():
        module.training = flag != (path in different)


def _items(data: object, where: str) -> list[Any]:
    if isinstance(data, list):
        return data
    raise damaged("no list", where)
