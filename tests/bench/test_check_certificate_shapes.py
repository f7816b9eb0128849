"""Shapes that ONNX loses, einsum, and what is said of a layer that cannot be read."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx_builder as build
import pytest
from onnx import helper

from bench.certificate_energy import totals as summed
from bench.certificate_files import Graph, energy_of
from bench.certificate_shapes import inferred_shapes
from bench.check_certificate import check, main
from energy_model import load_hardware

HARDWARE = load_hardware("eyeriss").to_dict()
node = helper.make_node
WEIGHT = build.ones(5, 4, 3, 3)
INTS = {
    "four": np.array([4]), "minus": np.array([-1]), "one": np.array([1]), "axes": np.array([2, 3]),
    "ones": np.array([1, 1]), "channel": np.array(1),
}  # fmt: skip
LOST = {
    "group normalization": [
        node("GroupNormalization", ["x", "g", "g"], ["h"], num_groups=2),
    ],
    "the mean repeated": [
        node("ReduceMean", ["x", "axes"], ["m"]),
        node("Shape", ["m"], ["a"], end=2),
        node("Concat", ["a", "ones"], ["b"], axis=0),
        node("Reshape", ["m", "b"], ["c"]),
        node("Shape", ["x"], ["d"]),
        node("Reshape", ["d", "minus"], ["e"]),
        node("Expand", ["c", "e"], ["f"]),
        node("Sub", ["x", "f"], ["h"]),
    ],
    "sorted": [
        node("Shape", ["x"], ["a"]),
        node("Gather", ["a", "channel"], ["b"]),
        node("Reshape", ["b", "one"], ["k"]),
        node("TopK", ["x", "k"], ["h", "places"], axis=1),
    ],
    "after two": [
        node("GroupNormalization", ["x", "g", "g"], ["a"], num_groups=2),
        node("Relu", ["a"], ["b"]),
        node("GroupNormalization", ["b", "g", "g"], ["h"], num_groups=2),
    ],
}


def totals(proto):
    graph = Graph(proto)
    return summed(energy_of(use, HARDWARE) for use in graph.uses()), graph.unread


@pytest.mark.parametrize("name", LOST)
def test_shapes_that_onnx_loses_are_computed(name):
    constants = {"w": WEIGHT, "g": build.ones(4), **INTS}
    nodes = [*LOST[name], node("Conv", ["h", "w"], ["y"])]
    proto = build.model(nodes, constants, ("x", ("batch", 4, 8, 8)))
    assert inferred_shapes(proto)["h"] == (1, 4, 8, 8)
    found, unread = totals(proto)
    plain, _ = totals(build.layer("Conv", WEIGHT, ("batch", 4, 8, 8)))
    assert (found, unread) == (plain, {})


def test_a_file_is_left_as_it_is():
    proto = build.model(LOST["sorted"], INTS, ("x", ("batch", 4, 8, 8)), output="h")
    before = proto.SerializeToString()
    inferred_shapes(proto)
    assert proto.SerializeToString() == before


def einsum(equation, weight, shape, order=("x", "w")):
    made = node("Einsum", list(order), ["y"], equation=equation)
    return build.model([made], {"w": weight}, ("x", shape))


@pytest.mark.parametrize(
    ("equation", "weight", "same"),
    [
        ("bi,ij->bj", (4, 5), build.layer("MatMul", build.ones(4, 5), ("n", 4))),
        ("b t i, o i -> b t o", (5, 4), build.layer("MatMul", build.ones(4, 5), ("n", 3, 4))),
        ("bgi,gij->bgj", (2, 4, 5), build.layer("MatMul", build.ones(2, 4, 5), ("n", 2, 1, 4))),
        ("bthd,hde->bte", (2, 4, 5), build.layer("MatMul", build.ones(8, 5), ("n", 3, 8))),
    ],
)
def test_an_einsum_of_a_weight_is_a_product(equation, weight, same):
    operand = equation.replace(" ", "").partition(",")[0]
    sizes = {"b": "n", "t": 3, "i": 4, "g": 2, "h": 2, "d": 4}
    shape = tuple(sizes[label] for label in operand)
    found, unread = totals(einsum(equation, build.ones(*weight), shape))
    assert not unread
    assert found == totals(same)[0]


def test_the_weight_of_an_einsum_may_come_first():
    swapped = einsum("ij,bi->bj", build.every_other(4, 5), ("n", 4), order=("w", "x"))
    straight = einsum("bi,ij->bj", build.every_other(4, 5), ("n", 4))
    assert totals(swapped) == totals(straight)


@pytest.mark.parametrize(
    ("equation", "shape"),
    [("bi,ij->b", ("n", 4)), ("...i,ij->...j", ("n", 4)), ("bik,ij->bj", ("n", 4, 3))],
)
def test_another_einsum_is_named(equation, shape):
    found, unread = totals(einsum(equation, build.ones(4, 5), shape))
    assert found["macs"] == 0
    [told] = unread.values()
    assert repr(equation) in told.why
    assert told.weights == {"w"}


@pytest.fixture
def half_readable(tmp_path):
    """Two layers, of which the second one's padding is the runtime's choice."""
    nodes = [
        node("Conv", ["x", "v"], ["h"]),
        node("Conv", ["h", "w"], ["y"], auto_pad="SAME_UPPER", name="second"),
    ]
    constants = {"v": build.every_other(4, 3, 1, 1), "w": WEIGHT}
    path = build.save(build.model(nodes, constants, ("x", ("n", 3, 8, 8))), tmp_path / "m.onnx")
    rows = [("first", "v", 12, 6), ("second", "w", 180, 180)]
    layers = [
        {"name": name, "initializers": [held], "weights": all_of, "nonzeros": kept, "bits": 32}
        | {"uncounted": ""}
        for name, held, all_of, kept in rows
    ]
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    claims = {
        "format": "transform-certificate", "version": 1, "hardware": HARDWARE, "layers": layers,
        "file": {"name": path.name, "sha256": digest, "bytes": len(content)},
        "limits": [
            {"limit": key, "asked": "", "maximum": reached, "base": base, "reached": reached}
            | {"holds": True, "kind": "exact"}
            for key, base, reached in (
                ("energy", 10**9, 10**8), ("nonzeros", 192, 186), ("sparse_macs", 10**6, 10**5)
            )
        ],
        "totals": {"macs": 1, "weights": 192, "nonzeros": 186, "energy": dict.fromkeys(
            ("weights", "compute", "compute_relaxed", "activations", "positions", "exact",
             "relaxed"), 1)},
    }  # fmt: skip

    def write(change=lambda claims: None):
        change(claims)
        certificate = tmp_path / "m.certificate.json"
        certificate.write_text(json.dumps(claims))
        return certificate

    return write


def test_what_cannot_be_read_is_named_and_the_rest_is_checked(half_readable, capsys):
    certificate = half_readable()
    [problem] = check(certificate)
    assert problem.startswith("node second: cannot be checked: ")
    assert main([str(certificate)]) == 2
    output = capsys.readouterr()
    assert "node second" in output.err
    unchecked = [x[:36].strip() for x in output.out.splitlines() if "not checked" in x]
    assert unchecked[:3] == ["macs", "energy", "sparse_macs"]
    assert unchecked[-1] == "node second"
    checked = [line for line in output.out.splitlines() if line.rstrip().endswith("yes")]
    assert any("layer second, nonzeros" in line for line in checked)


def test_what_can_be_read_may_still_be_wrong(half_readable):
    def change(claims):
        claims["layers"][1]["nonzeros"] = 179

    certificate = half_readable(change)
    assert "layer second, nonzeros" in {text.partition(":")[0] for text in check(certificate)}
    assert main([str(certificate)]) == 1
