"""The accelerator that the energy model describes, and its named profiles (YAML files).

Source: Yang, Zhu, Liu, ICLR 2019 (the model); Chen et al., ISCA 2016 (Eyeriss, its constants).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from energy_model.errors import HardwareError
from energy_model.units import format_joules

_PROFILES = Path(__file__).parent / "profiles"
_TEXT_FIELDS = ("name", "source")
_MAY_BE_ZERO = ("index_bits",)


@dataclasses.dataclass(frozen=True, slots=True)
class Hardware:
    """An output-stationary array with two on-chip caches, and what its accesses and MACs cost.

    The defaults are those of the profile `eyeriss`, so a profile only states what differs. There,
    energies are multiples of one MAC's. A profile that knows joules may count in any unit, such as
    10 fJ, so fine that all fields are integers: `joules_per_mac` is the size of that unit.

    Attributes:
        name: How tables and certificates call it.
        array_rows: Output positions computed side by side (m).
        array_columns: Output channels computed side by side (n).
        input_cache_bytes: Capacity of the input cache, bytes.
        weight_cache_bytes: Capacity of the weight cache, bytes.
        word_bits: Width of a weight, an activation and an output, bits.
        mac_energy: One multiply-accumulate with its partial sum's register-file traffic.
        dram_energy: One word to or from DRAM.
        cache_energy: One word from a cache.
        rf_energy: One operand word from the register file.
        index_bits: Bits stored for the position of one nonzero weight; 0 in the papers' model.
        channel_multiple: Channel counts the array prefers are multiples of this.
        joules_per_mac: Joules of one unit of all energies here, which need not be that of a MAC;
            None where it is not known.
        source: Where the constants come from.

    Raises:
        HardwareError: A field has a wrong type or is not positive.
    """

    name: str
    array_rows: int = 12
    array_columns: int = 14
    input_cache_bytes: int = 102400
    weight_cache_bytes: int = 8192
    word_bits: int = 16
    mac_energy: int = 3
    dram_energy: int = 200
    cache_energy: int = 6
    rf_energy: int = 1
    index_bits: int = 0
    channel_multiple: int = 1
    joules_per_mac: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _TEXT_FIELDS:
                _check_text(self.name, field.name, value)
            elif field.name == "joules_per_mac":
                _check_joules(self.name, value)
            else:
                _check_integer(self.name, field.name, value)
        for cache in ("input_cache", "weight_cache"):
            if getattr(self, f"{cache}_words") < 1:
                size = getattr(self, f"{cache}_bytes")
                raise HardwareError(
                    f"{cache}_bytes is {size!r}, which holds no word of {self.word_bits} bits",
                    where=f"hardware {self.name!r}",
                    remedy=f"Give at least {-(-self.word_bits // 8)} bytes.",
                )

    @property
    def unit(self) -> str:
        """The unit of energies, in words."""
        if self.joules_per_mac is None:
            return "multiples of one MAC's energy"
        return f"multiples of {format_joules(self.joules_per_mac)}"

    def joules(self, energy: float) -> float | None:
        """An energy in joules; None where the profile does not know them.

        Args:
            energy: In the unit of the profile.
        """
        return None if self.joules_per_mac is None else energy * self.joules_per_mac

    @property
    def input_cache_words(self) -> int:
        """Capacity of the input cache in words (k_X)."""
        return self.input_cache_bytes * 8 // self.word_bits

    @property
    def weight_cache_words(self) -> int:
        """Capacity of the weight cache in words (k_W)."""
        return self.weight_cache_bytes * 8 // self.word_bits

    def replace(self, **changes: Any) -> Hardware:
        """A copy with some fields changed, validated again.

        Raises:
            HardwareError: Unknown field or bad value.
        """
        return Hardware.from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name, as `from_dict` reads them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Hardware:
        """Builds a profile from plain values; fields that are absent keep their defaults.

        Args:
            values: Field name to value; `name` defaults to `"custom"`.

        Raises:
            HardwareError: Unknown field or bad value.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [str(key) for key in values if key not in known]
        if unknown:
            raise HardwareError(
                f"unknown field {', '.join(unknown)}",
                where=f"hardware {values.get('name', 'custom')!r}",
                remedy=f"Known fields: {', '.join(known)}.",
            )
        return cls(**{"name": "custom", **values})


def hardware_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package, sorted."""
    return tuple(sorted(path.stem for path in _PROFILES.glob("*.yaml")))


def load_hardware(spec: str | Path | Mapping[str, Any] | Hardware) -> Hardware:
    """Finds a hardware profile.

    Args:
        spec: A `Hardware` (returned as it is), a mapping of its fields, the name of a profile,
            or the path of a YAML file.

    Raises:
        HardwareError: Unknown profile, unreadable file, malformed YAML, unknown field, bad value.
    """
    if isinstance(spec, Hardware):
        return spec
    if isinstance(spec, Mapping):
        return Hardware.from_dict(spec)
    if isinstance(spec, str) and spec in hardware_profiles():
        return _read_profile(_PROFILES / f"{spec}.yaml")
    if isinstance(spec, (str, Path)) and _names_a_file(spec):
        return _read_profile(Path(spec))
    raise HardwareError(
        f"unknown hardware profile {spec!r}",
        remedy=f"Known profiles: {', '.join(hardware_profiles())}; or give a .yaml file's path.",
    )


def _names_a_file(spec: str | Path) -> bool:
    path = Path(spec)
    return isinstance(spec, Path) or path.suffix in (".yaml", ".yml") or path.is_file()


def _read_profile(path: Path) -> Hardware:
    import yaml  # 20 ms that `import transform` need not wait for

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise HardwareError(
            f"cannot read the hardware profile ({reason})",
            where=str(path),
            remedy=f"Known profiles: {', '.join(hardware_profiles())}; or give an existing file.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HardwareError(
            f"not a readable YAML file ({' '.join(str(error).split())})",
            where=str(path),
            remedy="Write one `field: value` per line; see the profile `eyeriss` for an example.",
        ) from error
    if not isinstance(values, dict):
        raise HardwareError(
            f"holds {type(values).__name__}, but a profile is a mapping of fields to values",
            where=str(path),
            remedy="Write one `field: value` per line; see the profile `eyeriss` for an example.",
        )
    try:
        return Hardware.from_dict({"name": path.stem, **values})
    except HardwareError as error:
        raise HardwareError(error.what, where=str(path), remedy=error.remedy) from error


def _check_text(name: object, field: str, value: object) -> None:
    if not isinstance(value, str) or (field == "name" and not value.strip()):
        raise HardwareError(
            f"{field} is {value!r}, but must be {'a name' if field == 'name' else 'a text'}",
            where=f"hardware {name!r}",
            remedy="Put it in quotes.",
        )


def _check_integer(name: object, field: str, value: object) -> None:
    least = 0 if field in _MAY_BE_ZERO else 1
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        unit = "multiples of one MAC's energy" if field.endswith("_energy") else "no unit suffix"
        raise HardwareError(
            f"{field} is {value!r}, but must be an integer of at least {least}",
            where=f"hardware {name!r}",
            remedy=f"Give a plain integer ({unit}).",
        )


def _check_joules(name: object, value: object) -> None:
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type,operator]
        raise HardwareError(
            f"joules_per_mac is {value!r}, but must be a positive number of joules or absent",
            where=f"hardware {name!r}",
            remedy="In YAML an exponent needs a decimal point: 1.0e-12, not 1e-12.",
        )
