"""A user's own folder or file of one of our names: an ImportError that names it, at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONSOLE = Path(sys.executable).with_name("transform")


def python(folder, code):
    """Run code in a fresh process whose current directory comes first on the path."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.spread(1)
@pytest.mark.parametrize("room", ["export", "bench", "passes", "energy_model"])
def test_a_package_of_the_users_own_is_named(tmp_path, room):
    own = tmp_path / room
    own.mkdir()
    (own / "__init__.py").write_text("")
    done = python(tmp_path, "import transform")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0
    assert last.startswith("ImportError: ")
    assert repr(room) in last
    assert str(own) in last
    assert "Rename or move" in last


def test_a_module_named_transform_is_named_by_whatever_is_imported(tmp_path):
    own = tmp_path / "transform.py"
    own.write_text("compress = None\n")
    for room in ("passes", "export"):
        done = python(tmp_path, f"import {room}")
        assert done.returncode != 0
        assert done.stderr.strip().splitlines()[-1].startswith("ImportError: ")
        assert str(own) in done.stderr


@pytest.mark.spread(1)
@pytest.mark.skipif(not CONSOLE.exists(), reason="the console script is not installed")
@pytest.mark.parametrize("own", ["transform.py", "export/__init__.py", "bench/__init__.py"])
def test_the_command_says_so_too(tmp_path, own):
    path = tmp_path / own
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [CONSOLE, "--help"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert str(path if path.name == "transform.py" else path.parent) in done.stderr


def test_a_mere_folder_of_that_name_shadows_nothing(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "notes.txt").write_text("mine")
    done = python(tmp_path, "import energy_model, passes, export; print(export.__file__)")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in done.stdout
