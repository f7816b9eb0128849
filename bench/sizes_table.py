"""The sizes of finished runs in every way of counting: `python -m bench.sizes_table RUNS...`.

A row for each cell that `transform run` left under the folders: test accuracy, nonzeros, nominal
bits, bits as authors report them, the entropy of the weights, and the bytes of the whole archive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.comparison import read_results
from bench.saved_runs import COMPRESSED
from energy_model.errors import StorageError
from passes.storage.atomic import read_json
from transform.sizes import Sizes


@dataclass(frozen=True, slots=True)
class Row:
    """One finished cell.

    Attributes:
        recipe: Its name.
        method: As the cell is labelled.
        budget: As asked.
        seed: Of the training.
        steps: Optimizer steps.
        before: Test accuracy of the original; a share.
        after: That of the result.
        nonzeros: Weights that are left.
        sizes: In every way of counting.
    """

    recipe: str
    method: str
    budget: str
    seed: int
    steps: int
    before: float
    after: float
    nonzeros: int
    sizes: Sizes


def find_rows(folders: Iterable[Path]) -> list[Row]:
    """The finished cells under some folders, by recipe, size and method.

    Raises:
        StorageError: There is none under a folder, or one is damaged.
    """
    rows = [read_row(cell, result) for cell, result in read_results(folders).items()]
    return sorted(rows, key=lambda r: (r.recipe, -(r.sizes.archive_bytes or 0), r.method, r.seed))


def read_row(folder: Path, result: Mapping[str, Any]) -> Row:
    """The row of a cell.

    Args:
        folder: That of the cell.
        result: What its `result.json` holds.

    Raises:
        StorageError: Its model is missing, or its sizes were not counted.
    """
    path = folder / "compressed" / COMPRESSED
    sizes = read_json(path).get("sizes")
    if sizes is None:
        raise StorageError("the run has counted no sizes", where=str(path), remedy="Run it again.")
    cell, test = result["cell"], result["metrics"]["test"]
    return Row(
        result["recipe"]["name"],
        cell["label"],
        cell["budget"],
        cell["seed"],
        result["steps"],
        test["before"],
        test["after"],
        result["nonzeros"]["after"],
        Sizes.from_dict(sizes),
    )


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| recipe | method | budget | seed | steps | test before | after | nonzeros | nominal "
        "| as authors report | entropy, bytes | archive, bytes | of the float ONNX |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        sizes = row.sizes
        archive, original = sizes.archive_bytes, sizes.original_bytes
        cells = [
            *(row.recipe, row.method, row.budget, str(row.seed), str(row.steps)),
            *(f"{row.before:.2%}", f"{row.after:.2%}", f"{row.nonzeros:,}"),
            _times(sizes.dense_bits, sizes.nominal_bits),
            _times(sizes.dense_bits, sizes.authors_bits),
            f"{sizes.entropy_bits / 8:,.0f}",
            "-" if archive is None else f"{archive:,}",
            "-" if archive is None or not original else f"1/{original / archive:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _times(dense: float, bits: float) -> str:
    return f"{dense / bits:,.0f}x" if bits else "-"


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders of `transform run`.")],
    out: Annotated[Path | None, typer.Option(help="A Markdown file for the table.")] = None,
) -> None:
    """Print the sizes of every finished cell."""
    found = table(find_rows(folders))
    print(found)
    if out is not None:
        out.write_text(found + "\n")


if __name__ == "__main__":
    typer.run(main)
