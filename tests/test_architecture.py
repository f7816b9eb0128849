"""The floors of the house: which package may import which, and how large a piece may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A package may import those below it and itself.
FLOORS = {"energy_model": 0, "passes": 1, "export": 2, "transform": 3, "bench": 4}
ONLY_IN = {
    "torch.fx": {"passes"},
    "onnx": {"export", "bench"},
    "onnx_ir": {"export", "bench"},
    "onnxscript": {"export"},
    "onnxruntime": {"export", "bench"},
    "torch": {"passes", "export", "transform", "bench"},
}
MAX_FILE, MAX_FUNCTION = 450, 70


def sources() -> list[Path]:
    return sorted(path for room in FLOORS for path in (ROOT / room).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def broken_rules(room: str, source: str) -> list[str]:
    """What a source file of a room does that its floor does not allow."""
    tree = ast.parse(source)
    top_level = set(tree.body)
    found = []
    for name, node in imports(tree):
        head = name.split(".")[0]
        lazily = room == "transform" and head == "bench" and node not in top_level
        if FLOORS.get(head, -1) > FLOORS[room] and not lazily:
            found.append(f"{room} imports {name}, an arrow up the floors")
        for library, rooms in ONLY_IN.items():
            inside = name == library or name.startswith(f"{library}.")
            if inside and room not in rooms:
                found.append(f"{room} imports {name}")
    if isinstance(tree, ast.Module) and source.count("\n") > MAX_FILE:
        found.append(f"{source.count(chr(10))} lines in one file")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body_start = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
            if (node.end_lineno or 0) - (body_start or 0) > MAX_FUNCTION:
                found.append(f"{node.name} is longer than {MAX_FUNCTION} lines")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_keeps_to_its_floor(path: Path) -> None:
    assert broken_rules(path.relative_to(ROOT).parts[0], path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "source", "words"),
    [
        ("energy_model", "import passes.graph", "an arrow up"),
        ("passes", "from transform import compress", "an arrow up"),
        ("transform", "import bench.measure", "an arrow up"),
        ("transform", "from torch.fx import Graph", "torch.fx"),
        ("export", "import torch.fx", "torch.fx"),
        ("export", "from torch import fx", "torch.fx"),
        ("transform", "import onnx", "onnx"),
        ("energy_model", "import torch", "torch"),
        ("passes", "x = 1\n" * 451, "lines in one file"),
        ("passes", "def f():\n" + "    x = 1\n" * 71, "longer than"),
    ],
)
def test_the_rules_fire(room: str, source: str, words: str) -> None:
    assert any(words in rule for rule in broken_rules(room, source))


def test_bench_may_be_imported_lazily() -> None:
    assert broken_rules("transform", "def f():\n    from bench.measure import measure\n") == []


@pytest.mark.slow
def test_no_relative_imports_and_no_pickle() -> None:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
        names = {name.split(".")[0] for name, _ in imports(ast.parse(path.read_text()))}
        assert not names & {"pickle", "dill", "cloudpickle", "joblib"}, path
