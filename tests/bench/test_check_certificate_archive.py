"""Certificates of archives: checked as far as the files beside them go, and no further."""

from __future__ import annotations

import hashlib
import json
from functools import cache

import onnx
import onnx_builder as build
import pytest
from onnx import numpy_helper

from bench.check_certificate import UnusableInputError, check, main, recount
from energy_model.hardware import load_hardware
from export.archive import pack

HARDWARE = load_hardware("eyeriss").to_dict()


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def limit(name, asked, maximum, base, reached):
    row = {"limit": name, "asked": asked, "maximum": maximum, "base": base, "reached": reached}
    return row | {"kind": "exact", "holds": True}


@cache
def content():
    """The bytes of an ONNX file, and of its archive."""
    proto = build.layer("MatMul", build.every_other(4, 6), ("batch", 4))
    plain = proto.SerializeToString()
    return plain, pack(plain)


@pytest.fixture
def packed(tmp_path):
    """A half-empty linear layer: archive, the ONNX file in it, and an honest certificate."""
    plain, archive = tmp_path / "model.onnx", tmp_path / "model.packed"
    plain.write_bytes(content()[0])
    archive.write_bytes(content()[1])
    size = archive.stat().st_size
    claims = {
        "format": "transform-certificate",
        "version": 1,
        "file": {
            "name": archive.name,
            "sha256": digest(archive),
            "bytes": size,
            "inside": {"sha256": digest(plain), "bytes": plain.stat().st_size, "form": "dense"},
        },
        "hardware": HARDWARE,
        "limits": [
            limit("nonzeros", "<=50%", 12, 24, 12),
            limit("archive", f"archive<={size} B", size, 2 * size, size),
            limit("size", "size<=1 kB", 1000, 1000, plain.stat().st_size),
        ],
        "layers": [
            {"name": "layer", "initializers": ["w"], "weights": 24, "nonzeros": 12, "bits": 32,
             "uncounted": ""}
        ],
        "totals": {"macs": 24, "weights": 24, "nonzeros": 12,
                   "energy": recount(plain, HARDWARE).energy},
    }  # fmt: skip
    path = tmp_path / "model.certificate.json"

    def write(change=lambda claims: None):
        change(claims)
        path.write_text(json.dumps(claims))
        return path

    return archive, plain, write


def test_with_the_unpacked_file_everything_is_checked(packed):
    archive, plain, write = packed
    certificate = write()
    assert check(certificate) == []
    assert check(certificate, plain) == []
    assert check(certificate, archive) == []
    assert main([str(certificate)]) == 0


def test_an_archive_alone_is_checked_as_a_whole_and_says_so(packed, capsys):
    archive, plain, write = packed
    plain.unlink()
    certificate = write()
    for given in (None, archive):
        [problem] = check(certificate, given)
        assert problem == (
            "file inside: cannot be checked: it is not unpacked; "
            "run `transform unpack model.packed`"
        )
    assert main([str(certificate)]) == 2
    out, err = capsys.readouterr()
    assert "run `transform unpack model.packed`" in err
    rows = {line[:36].strip(): line.split()[-1] for line in out.splitlines()}
    assert rows["sha256"] == rows["bytes"] == rows["archive"] == "yes"
    assert rows["nonzeros"] == rows["size"] == "checked"


@pytest.mark.parametrize("unpacked", [True, False])
def test_another_archive_is_seen(packed, unpacked):
    archive, plain, write = packed
    certificate = write()
    archive.write_bytes(archive.read_bytes() + b"\0")
    if not unpacked:
        plain.unlink()
    told = {problem.partition(":")[0] for problem in check(certificate)}
    assert told - {"file inside"} == {"sha256", "bytes", "archive"}
    assert main([str(certificate)]) == 1


def test_another_file_inside_is_seen(packed):
    _, plain, write = packed
    certificate = write()
    model = onnx.load(plain)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight.flat[1] = 3
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(model, plain)
    told = {problem.partition(":")[0] for problem in check(certificate)}
    assert {"file inside, sha256", "nonzeros", "layer layer, nonzeros"} <= told
    assert not told & {"sha256", "bytes", "archive"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["file"]["inside"].update(bytes=1), "file inside, bytes"),
        (lambda c: c["file"].update(bytes=1), "bytes"),
        (lambda c: c["limits"][1].update(reached=1), "archive"),
        (lambda c: c["limits"][1].update(maximum=1), "archive, holds"),
        (lambda c: c["limits"][2].update(reached=1), "size"),
    ],
)
def test_every_lie_is_seen(packed, change, told):
    _, _, write = packed
    problems = check(write(change))
    assert told in {problem.partition(":")[0] for problem in problems}


def test_a_lie_of_the_archive_is_seen_without_the_file_inside(packed):
    _, plain, write = packed
    plain.unlink()
    certificate = write(lambda c: c["limits"][1].update(reached=1))
    assert any(problem.startswith("archive: ") for problem in check(certificate))
    assert main([str(certificate)]) == 1


def test_the_unpacked_file_may_stand_alone(packed, tmp_path):
    archive, plain, write = packed
    certificate = write()
    elsewhere = tmp_path / "elsewhere.onnx"
    plain.rename(elsewhere)
    archive.unlink()
    assert check(certificate, elsewhere) == []
    assert main([str(certificate), str(elsewhere)]) == 0


def test_without_any_file_the_certificate_is_unusable(packed):
    archive, plain, write = packed
    plain.unlink()
    archive.unlink()
    with pytest.raises(UnusableInputError, match=r"model\.packed"):
        check(write())


@pytest.mark.parametrize(
    "change", [lambda c: c["file"].pop("inside"), lambda c: c["file"].update(inside=None)]
)
def test_an_archive_is_no_answer_to_a_certificate_of_an_onnx_file(packed, change):
    archive, _, write = packed
    certificate = write(change)
    with pytest.raises(UnusableInputError, match="not a readable ONNX file"):
        check(certificate, archive)
