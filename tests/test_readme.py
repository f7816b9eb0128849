"""What the README says is true."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

import export
import transform
from energy_model.measures import MEASURES
from transform.choice import asked_of, automatic, choose_method

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


def shown() -> list[str]:
    """The blocks that are Python and no shell."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.M)
    return [text for language, text in blocks if not language]


class Anything:
    """What a call in the README gives: whatever is asked of it."""

    def __getattr__(self, name: str) -> Anything:
        return self

    def __call__(self, *_args: object, **_options: object) -> Anything:
        return self


@pytest.mark.parametrize("block", shown())
def test_what_is_shown_is_understood(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, methods, options and budgets, without the work."""
    known = inspect.signature(transform.compress)
    calls = []

    def compress(*args: object, **options: object) -> Anything:
        given = known.bind(*args, **options).arguments
        method = given.get("method", "auto")
        choose_method(method, asked_of(given["budget"], method))
        calls.append(given)
        return Anything()

    monkeypatch.setattr(transform, "compress", compress)
    monkeypatch.setattr(transform, "structure", lambda *_: Anything())
    monkeypatch.setattr(export, "unpack", lambda _archive, to: None)
    names = dict.fromkeys(("model", "images", "train_loader", "valid_loader"), Anything())
    exec(compile(block, "README.md", "exec"), {"transform": transform, **names})
    assert len(calls) == block.count("transform.compress(")


def test_the_table_of_limits_is_what_the_methods_serve() -> None:
    served, taken = {}, {}
    row = r"^\| (`\w+`.*?) \| .*? \|(.*?)\| (`.*?) \|$"
    for keys, auto, methods in re.findall(row, README, flags=re.M):
        for key in re.findall(r"`(\w+)`", keys.split("(")[0]):
            served[key] = set(re.findall(r"`(\w+)`", methods)) - {"UnsupportedBudget"}
            if auto.strip():
                taken[key] = auto.strip(" `")
    assert set(served) == set(MEASURES)
    assert taken == automatic()
    for key, names in served.items():
        expected = {spec.name for spec in transform.methods().values() if key in spec.serves}
        assert names == expected, key


def test_the_folders_exist() -> None:
    for folder in re.findall(r"^\| `(\w+)/` \|", README, flags=re.M):
        assert (ROOT / folder).is_dir()
