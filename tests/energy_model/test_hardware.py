from __future__ import annotations

from pathlib import Path

import pytest

from energy_model.errors import HardwareError
from energy_model.hardware import Hardware, hardware_profiles, load_hardware


def test_eyeriss_is_the_default_and_knows_no_joules() -> None:
    eyeriss = load_hardware("eyeriss")
    assert "eyeriss" in hardware_profiles()
    assert eyeriss.source
    assert eyeriss == Hardware("eyeriss", source=eyeriss.source)
    assert (eyeriss.input_cache_words, eyeriss.weight_cache_words) == (51_200, 4_096)
    assert eyeriss.joules_per_mac is None


def test_every_profile_loads_under_its_own_name() -> None:
    assert [load_hardware(name).name for name in hardware_profiles()] == list(hardware_profiles())


def test_forms_of_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "edge.yaml"
    path.write_text("array_rows: 4\njoules_per_mac: 1.0e-12\n")
    edge = load_hardware(path)
    assert edge == load_hardware(str(path)) == load_hardware(edge)
    assert edge == load_hardware({"name": "edge", "array_rows": 4, "joules_per_mac": 1e-12})
    assert (edge.array_rows, edge.array_columns) == (4, 14)
    assert Hardware.from_dict(edge.to_dict()) == edge
    assert load_hardware({}).name == "custom"


def test_replace_validates() -> None:
    assert load_hardware("eyeriss").replace(word_bits=8).input_cache_words == 102_400
    with pytest.raises(HardwareError, match="word_bits is 0"):
        load_hardware("eyeriss").replace(word_bits=0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("array_rows", 0, "array_rows is 0, but must be an integer of at least 1"),
        ("array_columns", 2.5, "array_columns is 2.5"),
        ("word_bits", True, "word_bits is True"),
        ("dram_energy", "200", "dram_energy is '200'.*multiples of one MAC"),
        ("rf_energy", -1, "rf_energy is -1"),
        ("index_bits", -1, "index_bits is -1, but must be an integer of at least 0"),
        ("joules_per_mac", "1e-12", "joules_per_mac is '1e-12'.*1.0e-12"),
        ("joules_per_mac", float("nan"), "joules_per_mac is nan"),
        ("joules_per_mac", 0.0, "joules_per_mac is 0.0"),
        ("joules_per_mac", True, "joules_per_mac is True"),
        ("weight_cache_bytes", 1, "holds no word of 16 bits.*at least 2 bytes"),
        ("name", " ", "name is ' '"),
        ("source", 3, "source is 3"),
        ("sram_energy", 3, "unknown field sram_energy.*Known fields: name, array_rows"),
    ],
)
def test_bad_fields_are_named(field: str, value: object, message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        Hardware.from_dict({field: value})


def test_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(HardwareError, match=r"unknown hardware profile 'eyris'.*eyeriss"):
        load_hardware("eyris")
    with pytest.raises(HardwareError, match="unknown hardware profile 3"):
        load_hardware(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("array_rows: [1", "not a readable YAML file"),
        ("- 1\n", "holds list"),
        ("", "holds NoneType"),
        ("array_rows: x\n", "edge.yaml: array_rows is 'x'"),
        ("1: 2\n", "edge.yaml: unknown field 1"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "edge.yaml"
    path.write_text(text)
    with pytest.raises(HardwareError, match=message) as error:
        load_hardware(path)
    assert str(path) in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="No such file"):
        load_hardware(str(tmp_path / "none.yaml"))
    with pytest.raises(HardwareError, match="Is a directory"):
        load_hardware(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(HardwareError, match="not a readable YAML file"):
        load_hardware(tmp_path / "binary.yaml")
