"""Recount a compression certificate from the exported ONNX file alone.

    python bench/check_certificate.py model.certificate.json [model.onnx]

A second implementation of the energy model of Yang, Zhu, Liu (ICLR 2019) that shares no code with
the compiler, so that a mistake there cannot hide here. It needs onnx, numpy, and the files
`certificate_*.py` beside it in a folder named `bench`. It reads dense files, column groups, weights
as codes and scales, and sparse ones. Of an archive (`.packed`) it checks digest and size, and all
the rest against the ONNX file in it, which `transform unpack model.packed` puts beside it.

Exit code: 0 when every limit holds and all that can be recounted agrees, 1 when anything differs,
2 when an input is unusable, a layer of the file cannot be read, or an archive is not unpacked.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a script: the folder that holds `bench` need not be on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.certificate_archive import Files, files_of
from bench.certificate_energy import ENERGY, MACS, Bits
from bench.certificate_files import Claim, Recount, UnusableInputError, Weight, recount

__all__ = ["UnusableInputError", "check", "main", "recount"]

_COUNTED_BY_USE = ("energy", *MACS)
_INSIDE = "file inside"
# What no measurement of a time decides, however steady its rounds are.
_RESOLUTION = 0.05


class Row(NamedTuple):
    """One claim of the certificate beside the file's answer; `ok` None: not to be recounted."""

    what: str
    claimed: object
    recounted: object
    ok: bool | None
    asked: str = ""


def _compare(what: str, claimed: object, recounted: object, asked: str = "") -> Row:
    return Row(what, claimed, recounted, claimed == recounted, asked)


def _compare_uses(what: str, claimed: object, recounted: object, found: Recount) -> Row:
    """As `_compare`, of what counts only where every layer of the file can be read."""
    return Row(what, claimed, "", None) if found.unread else _compare(what, claimed, recounted)


def _limit_rows(limit: Mapping[str, Any], found: Recount) -> Iterator[Row]:
    name, asked = limit["limit"], str(limit["asked"])
    # Folding batch normalisation changes `params`: recounted only where taken from the file.
    folded = name == "params" and limit.get("counted_from") != "file"
    unread = found.unread and name in _COUNTED_BY_USE
    if limit["kind"] != "exact" or name not in found.counts or folded or unread:
        yield Row(name, limit["reached"], "", None, asked)
    else:
        yield _compare(name, limit["reached"], found.counts[name], asked)
        if name in found.bases:
            base, own = limit["base"], found.bases[name]
            cut = limit.get("base_counted_from") == "original" and base > own  # smaller layers
            yield Row(f"{name}, base", base, own, None if cut else base == own)
    yield from _bound_rows(limit)


def _bound_rows(limit: Mapping[str, Any]) -> Iterator[Row]:
    """The limit itself: what it allows, and whether it holds."""
    name, asked, maximum = limit["limit"], str(limit["asked"]), limit["maximum"]
    if share := re.fullmatch(r"\w*<=\s*(\d+(?:\.\d+)?)\s*%", asked):
        exactly = Fraction(share[1]) / 100 * Fraction(limit["base"])
        # Counts are whole; of a time there is every part.
        most = math.floor(exactly) if limit["kind"] == "exact" else float(exactly)
        yield Row(f"{name}, maximum", maximum, f"<= {most}", maximum <= most, asked)
    if limit.get("undecidable"):
        spreads = limit["measurement"]["spread"], limit["measurement"].get("base_spread", 0.0)
        noise = max(_RESOLUTION, math.hypot(*spreads))
        close = abs(limit["reached"] - maximum) <= noise * maximum
        yield Row(f"{name}, holds", "undecidable", f"noise {noise:.1%}", close and None, asked)
        return
    holds = bool(limit["holds"]) and limit["reached"] <= maximum
    yield Row(f"{name}, holds", limit["holds"], limit["reached"] <= maximum, holds, asked)


def _charged(layer: Mapping[str, Any]) -> Bits:
    """Bits of a layer's operands that the certificate charges energy for."""
    return Bits(**layer.get("cost", {}).get("widths", {}))


def _merged(layers: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Layers as they lie in the file: both directions of a recurrent one share an initializer."""
    merged = dict[object, dict[str, Any]]()
    for layer in layers:
        own = {**layer, "energy": layer.get("cost", {}).get("energy", {}).get("exact")}
        first = merged.setdefault(tuple(layer["initializers"]) or layer["name"], own)
        if first["name"] != layer["name"]:
            first |= {key: first[key] + layer[key] for key in ("weights", "nonzeros")}
            if None not in (first["energy"], own["energy"]):
                first["energy"] += own["energy"]
    yield from merged.values()


def _layer_rows(layers: Iterable[Mapping[str, Any]], found: Recount) -> Iterator[Row]:
    unclaimed = dict(found.weights)
    for layer in _merged(layers):
        what = f"layer {layer['name']}"
        names = [found.aliases.get(name, name) for name in layer["initializers"]]
        present = [name for name in names if unclaimed.pop(name, None)]
        if layer["uncounted"]:
            continue
        if not present or len(present) < len(names):
            yield Row(what, layer["nonzeros"], "no weighted node uses all of it", False)
            continue
        weights = [found.weights[name] for name in present]
        yield _compare(f"{what}, weights", layer["weights"], sum(w.elements for w in weights))
        yield _compare(f"{what}, nonzeros", layer["nonzeros"], sum(w.nonzeros for w in weights))
        yield from _bits_rows(what, layer, weights)
        if any(node.weights & {*present} for node in found.unread.values()):
            continue
        yield from _side_rows(what, layer, [found.read[name] for name in present])
        if layer["energy"] is not None:
            energy = sum(found.layers[name]["exact"] for name in present)
            yield _compare(f"{what}, energy", layer["energy"], energy)
    for name, weight in unclaimed.items():
        yield Row(f"weight {name}", "in no layer", weight.nonzeros, False)


def _bits_rows(what: str, layer: Mapping[str, Any], weights: list[Weight]) -> Iterator[Row]:
    """The bits of a layer's weight, as stored and where less than a word is charged."""
    needed, charged = max(weight.needed for weight in weights), _charged(layer).weights
    if "bits" in layer:
        holds = all(weight.holds(layer["bits"]) for weight in weights)
        told = f"codes of {needed}" if all(w.coded for w in weights) else weights[0].bits
        yield Row(f"{what}, bits", layer["bits"], told, holds)
    if charged is not None:
        holds = all(weight.coded and weight.needed <= charged for weight in weights)
        yield Row(f"{what}, charged bits", charged, needed, holds)


def _side_rows(what: str, layer: Mapping[str, Any], read: list[Bits]) -> Iterator[Row]:
    """The bits of what a layer reads and writes, where less than a word is charged."""
    for side in ("inputs", "outputs"):
        claimed, found = getattr(_charged(layer), side), [getattr(bits, side) for bits in read]
        if claimed is not None:
            holds = all(bits is not None and bits <= claimed for bits in found)
            told = "floating point" if None in found else f"{max(found)} bits"
            yield Row(f"{what}, {side}", f"{claimed} bits", told, holds)


def _audit(certificate: Path, model: Path | None) -> Iterator[Row]:
    claims = json.loads(certificate.read_text(encoding="utf-8"))
    if (claims["format"], claims["version"]) != ("transform-certificate", 1):
        raise UnusableInputError(f"{certificate}: not a certificate of version 1")
    files = files_of(claims["file"], certificate, model)
    yield from _file_rows(claims["file"], files)
    if files.model is None:
        for limit in claims["limits"]:
            yield from _archive_limit_rows(limit, files)
    else:
        yield from _model_rows(claims, files.model, files)


def _file_rows(file: Mapping[str, Any], files: Files) -> Iterator[Row]:
    """The archive, if the certificate is of one."""
    if not file.get("inside"):
        return
    if files.archive is None:
        yield Row("sha256", file["sha256"], "", None)
        yield Row("bytes", file["bytes"], "", None)
    else:
        yield _compare("sha256", file["sha256"], files.archive.digest)
        yield _compare("bytes", file["bytes"], files.archive.size)
    if files.model is None:
        name = Path(file["name"]).name
        remedy = f"it is not unpacked; run `transform unpack {name}`"
        yield Row(_INSIDE, file["inside"]["sha256"], remedy, None)


def _archive_limit_rows(limit: Mapping[str, Any], files: Files) -> Iterator[Row]:
    """A limit, as far as it can be told from an archive that is not unpacked."""
    name, asked = limit["limit"], str(limit["asked"])
    if name == "archive" and files.archive is not None:
        yield _compare(name, limit["reached"], files.archive.size, asked)
    else:
        yield Row(name, limit["reached"], "", None, asked)
    yield from _bound_rows(limit)


def _model_rows(claims: Mapping[str, Any], path: Path, files: Files) -> Iterator[Row]:
    """All that is claimed of an ONNX file."""
    file, totals, energy = claims["file"], claims["totals"], claims["totals"]["energy"]
    told = {
        name: Claim(layer["bits"], _charged(layer))
        for layer in claims["layers"]
        for name in layer["initializers"]
        if "bits" in layer
    }
    found = recount(path, claims["hardware"], told)
    own = file.get("inside") or file
    what = f"{_INSIDE}, " if own is not file else ""
    yield _compare(f"{what}sha256", own["sha256"], found.digest)
    yield _compare(f"{what}bytes", own["bytes"], found.counts["size"])
    if files.archive is not None:
        found.counts["archive"] = files.archive.size
    yield _compare_uses("macs", totals["macs"], found.counts["macs"], found)
    yield from (_compare(key, totals[key], found.counts[key]) for key in ("weights", "nonzeros"))
    computed = [n for x in claims["layers"] if x["uncounted"] for n in x["initializers"]]
    for name in dict.fromkeys(found.aliases[n] for n in computed if n in found.aliases):
        weight = found.weights[name]
        found.counts["nonzeros"] -= weight.nonzeros  # no limit counts computed weights
        found.counts["weight_bits"] -= weight.nonzeros * found.bits[name]
        found.bases["nonzeros"] -= weight.elements
    for limit in claims["limits"]:
        yield from _limit_rows(limit, found)
    for key in ENERGY:
        yield _compare_uses(f"energy, {key}", energy[key], found.energy[key], found)
    yield from _layer_rows(claims["layers"], found)
    yield from (Row(f"node {name}", "", node.why, None) for name, node in found.unread.items())


def _answers(certificate: Path, model: Path | None) -> list[Row]:
    try:
        return list(_audit(certificate, model))
    except (OSError, LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        why = f"{type(error).__name__}: {error!s:.200}"  # its repr may hold the whole file
        raise UnusableInputError(f"{certificate}: not a usable certificate ({why})") from error


def _unread(rows: Iterable[Row]) -> list[str]:
    unread = (row for row in rows if row.ok is None)
    nodes = (row for row in unread if row.what.startswith("node ") or row.what == _INSIDE)
    return [f"{row.what}: cannot be checked: {row.recounted}" for row in nodes]


def check(certificate: Path, model: Path | None = None) -> list[str]:
    """What is wrong with a certificate, a sentence each.

    One for every disagreement with its file (default: that it names), one for every layer of the
    file that cannot be read, and one for an archive that is not unpacked; all else is checked
    nevertheless.
    """
    rows = _answers(Path(certificate), Path(model) if model else None)
    claim = "{0.what}: the certificate says {0.claimed}, the file says {0.recounted}"
    return [claim.format(row) for row in rows if row.ok is False] + _unread(rows)


def main(arguments: list[str] | None = None) -> int:
    """Print claims beside answers; return the exit code."""
    parser = argparse.ArgumentParser(description="Recount a certificate from its ONNX file alone.")
    parser.add_argument("certificate", type=Path)
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        help="default: the file that it names; of an archive also the unpacked .onnx",
    )
    options = parser.parse_args(arguments)
    try:
        rows = _answers(options.certificate, options.model)
    except UnusableInputError as error:
        print(f"unusable input: {error}", file=sys.stderr)
        return 2
    marks = {True: "yes", False: "NO", None: "not checked"}
    lines = [(r.what, r.asked, str(r.claimed), str(r.recounted), marks[r.ok]) for r in rows]
    for what, *cells in [("", "asked", "claimed", "recounted", "ok"), *lines]:
        print(f"{what:<36}", *(f"{cell[:19]:<19}" for cell in cells))
    unread = _unread(rows)
    if unread:
        print(*unread, sep="\n", file=sys.stderr)
    if any(row.ok is False for row in rows):
        return 1
    return 2 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
