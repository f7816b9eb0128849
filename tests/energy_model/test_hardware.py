from __future__ import annotations

from fractions import Fraction
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


def test_horowitz_is_what_its_sources_say() -> None:
    horowitz = load_hardware("horowitz")
    unit = Fraction(str(horowitz.joules_per_mac))
    pico = Fraction(1, 10**12)

    def picojoules(price: int) -> float:
        return float(price * unit / pico)

    # ISSCC 2014: 1300 and 20 pJ for 64 bits of DRAM and of 32 KB.
    assert picojoules(horowitz.dram_energy) == 1300 * 16 / 64
    assert picojoules(horowitz.cache_energy) == 20 * 16 / 64
    assert horowitz.input_cache_bytes == horowitz.weight_cache_bytes == 32 * 1024
    # The fit meets the table's multipliers; 0.1 pJ is its 32-bit addition.
    multiply = {b: 0.002994791667 * b**2 + 0.001041666667 * b for b in (8, 16, 32)}
    assert multiply[8] == pytest.approx(0.2)
    assert multiply[32] == pytest.approx(3.1)
    mac = multiply[16] + 0.1
    assert picojoules(horowitz.rf_energy) == pytest.approx(mac, rel=0.005)
    assert picojoules(horowitz.mac_energy) == pytest.approx(3 * mac, abs=0.005)
    # An 8-bit multiplication is charged a quarter of that of words, and the table agrees.
    assert multiply[8] / multiply[16] == pytest.approx(1 / 4, rel=0.03)
    assert "Horowitz" in horowitz.source


def test_units_and_joules() -> None:
    eyeriss, horowitz = load_hardware("eyeriss"), load_hardware("horowitz")
    assert eyeriss.unit == "multiples of one MAC's energy"
    assert horowitz.unit == "multiples of 10 fJ"
    assert eyeriss.joules(5.0) is None
    assert horowitz.joules(3e8) == pytest.approx(3e-6)
    assert eyeriss.replace(joules_per_mac=2e-12).unit == "multiples of 2 pJ"


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
