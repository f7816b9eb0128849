"""What the README says is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import transform
from energy_model.measures import MEASURES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    [example] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.strip().splitlines()) == 10
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "energy<=25%: holds" in printed
    # Dead channels are gone: the file is smaller than the weights were.
    assert 50_000 < (tmp_path / "lenet5.onnx").stat().st_size < 61_706 * 4
    assert transform.load(tmp_path / "lenet5-compressed").certificate.holds


def test_the_table_of_limits_is_what_the_methods_serve() -> None:
    served = {}
    for keys, methods in re.findall(r"^\| (`\w+`.*?) \| .*? \| (.*?) \|$", README, flags=re.M):
        for key in re.findall(r"`(\w+)`", keys.split("(")[0]):
            served[key] = set(re.findall(r"`(\w+)`", methods)) - {"UnsupportedBudget"}
    assert set(served) == set(MEASURES)
    for key, names in served.items():
        expected = {spec.name for spec in transform.methods().values() if key in spec.serves}
        assert names == expected, key


def test_the_folders_exist() -> None:
    for folder in re.findall(r"^\| `(\w+)/` \|", README, flags=re.M):
        assert (ROOT / folder).is_dir()
