"""The table of sizes says what the files of the cells say."""

from __future__ import annotations

import json

import pytest

from bench.sizes_table import find_rows, main, table
from energy_model.errors import StorageError

SIZES = {
    "dense_bits": 3200,
    "nominal_bits": 100,
    "authors_bits": 80.0,
    "entropy_bits": 402.5,
    "archive_bytes": 95,
    "onnx_bytes": 700,
    "original_bytes": 950,
}


def cell(folder, *, sizes=SIZES, **changed):
    folder.mkdir(parents=True)
    result = {
        "format": "transform-result",
        "version": 1,
        "recipe": {"name": "toy"},
        "cell": {"label": "joint", "budget": "archive<=10%", "seed": 3},
        "steps": 40,
        "metrics": {"test": {"before": 0.9, "after": 0.875}},
        "nonzeros": {"before": 100, "after": 50},
    }
    (folder / "result.json").write_text(json.dumps(result | changed))
    (folder / "compressed").mkdir()
    saved = {"format": "transform-compressed", "version": 1, "sizes": sizes}
    (folder / "compressed" / "compressed.json").write_text(json.dumps(saved))


def test_a_row_for_every_cell_with_the_largest_archive_first(tmp_path):
    cell(tmp_path / "runs" / "a")
    cell(tmp_path / "runs" / "b", sizes=SIZES | {"archive_bytes": 190})
    larger, smaller = find_rows([tmp_path / "runs"])
    assert (larger.sizes.archive_bytes, smaller.sizes.archive_bytes) == (190, 95)
    assert table([smaller]).splitlines()[-1] == (
        "| toy | joint | archive<=10% | 3 | 40 | 90.00% | 87.50% | 50 | 32x | 40x | 50 | 95 "
        "| 1/10.0 |"
    )


def test_it_is_written(tmp_path, capsys):
    cell(tmp_path / "runs" / "a", sizes=SIZES | {"archive_bytes": None, "nominal_bits": 0})
    main([tmp_path / "runs"], tmp_path / "sizes.md")
    written = (tmp_path / "sizes.md").read_text()
    assert written == capsys.readouterr().out
    assert written.endswith("| - | 40x | 50 | - | - |\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"version": 2}, "no result of a run"), ({"sizes": None}, "counted no sizes")],
)
def test_what_is_no_finished_cell_is_an_error(changes, message, tmp_path):
    cell(tmp_path / "runs" / "a", **changes)
    with pytest.raises(StorageError, match=message):
        find_rows([tmp_path / "runs"])
    with pytest.raises(StorageError, match="there is no result"):
        find_rows([tmp_path / "nothing"])
