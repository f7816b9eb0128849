"""Weights as codes, sparse weights and rounded activations: counted, and every lie is seen."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import onnx_builder as build
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bench.certificate_constants import Constants
from bench.certificate_energy import ENERGY, Bits, energy_of
from bench.certificate_energy import totals as summed
from bench.certificate_files import Claim, Graph, recount
from bench.check_certificate import check, main
from energy_model import LayerShape, layer_energy, load_hardware
from energy_model.energy import Energy
from energy_model.widths import Widths

EYERISS = load_hardware("eyeriss")
HARDWARE = EYERISS.to_dict()
node = helper.make_node
CONV = LayerShape.conv(3, 4, [3, 3], [6, 6], padding=[(1, 1), (1, 1)])
LINEAR = LayerShape.linear(4, 5)
SCALES = {"s": np.float32(0.1), "z": np.uint8(128), "low": np.uint8(121), "high": np.uint8(136)}


def codes_of(*shape, largest=7, seed=0):
    """Random codes, half of them zero, the largest among them."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(-largest, largest + 1, shape) * generator.integers(0, 2, shape)
    codes.flat[0] = largest
    return codes.astype(np.int8)


def packed(codes, kind):
    dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind))
    return np.ascontiguousarray(codes).astype(dtype)


def rounded(source, target, clip=False):
    """Quantize and dequantize a value; `clip` leaves codes of four bits."""
    wide = f"{target}_wide" if clip else f"{target}_codes"
    nodes = [node("QuantizeLinear", [source, "s", "z"], [wide])]
    if clip:
        nodes.append(node("Clip", [wide, "low", "high"], [f"{target}_codes"]))
    return [*nodes, node("DequantizeLinear", [f"{target}_codes", "s", "z"], [target])]


def as_codes(name, codes, *, kind="INT8", axis=0, block=None):
    """The node and constants of a weight on a grid."""
    shape = list(codes.shape)
    if block is None:
        scale, attributes = np.linspace(0.5, 1, shape[axis], dtype=np.float32), {"axis": axis}
    else:
        shape[1 - axis] = -(-shape[1 - axis] // block)
        scale = np.linspace(0.5, 1, np.prod(shape), dtype=np.float32).reshape(shape)
        attributes = {"axis": 1 - axis, "block_size": block}
    made = node("DequantizeLinear", [f"{name}_codes", f"{name}_scale"], [name], **attributes)
    return made, {f"{name}_codes": packed(codes, kind), f"{name}_scale": scale}


def as_gaps(name, whole, then=None):
    """The nodes and constants of a sparse weight: gaps of a byte, and values."""
    places = np.flatnonzero(whole)
    values, zero = whole.reshape(-1)[places], np.zeros(1, whole.dtype)
    nodes = [
        node("Cast", [f"{name}.gaps"], [f"{name}.a"], to=TensorProto.INT32),
        node("CumSum", [f"{name}.a", "axis"], [f"{name}.b"]),
        node(
            "ConstantOfShape",
            [f"{name}.size"],
            [f"{name}.c"],
            value=numpy_helper.from_array(zero),
        ),
        node("ScatterElements", [f"{name}.{x}" for x in ("c", "b", "values")], [f"{name}.d"]),
        node("Reshape", [f"{name}.d", f"{name}.shape"], [then or name]),
    ]
    constants = {"gaps": np.diff(places, prepend=0).astype(np.uint8), "values": values}
    constants |= {"size": np.array([whole.size]), "shape": np.array(whole.shape)}
    return nodes, {f"{name}.{key}": v for key, v in constants.items()} | {"axis": np.array(0)}


class Net:
    """Conv, ReLU, mean, MatMul: an honest file and certificate, to be spoilt.

    Args:
        folder: Where both are written.
        bits: Of the weights' grid; None for floats.
        kind: Type in which codes lie.
        activations: Bits of rounded activations; None for floats.
        block: Columns of the linear weight that share a scale.
        sparse: Whether the convolution's weight is written as gaps.
    """

    def __init__(self, folder, bits=8, kind="INT8", activations=8, block=None, sparse=False):
        largest = 2 ** (7 if bits is None else bits - 1) - 1
        conv, linear = codes_of(4, 3, 3, 3, largest=largest), codes_of(4, 5, largest=largest)
        self.counts = conv, linear
        self.bits, self.activations = bits, activations
        weights, constants = [], dict(SCALES)
        for name, codes, axis in (("c.weight", conv, 0), ("l.weight", linear, 1)):
            blocks = block if codes.ndim == 2 else None
            if bits is None:
                held, values = [], {name: codes.astype(np.float32)}
                if sparse:
                    held, values = as_gaps(name, codes.astype(np.float32))
            else:
                made, values = as_codes(name, codes, kind=kind, axis=axis, block=blocks)
                held = [made]
                if sparse:
                    gaps, more = as_gaps(name, codes, f"{name}_codes")
                    del values[f"{name}_codes"]
                    held, values = [*gaps, made], values | more
            weights += held
            constants |= values
        clip = activations == 4
        steps = rounded if activations else lambda a, b, clip: [node("Identity", [a], [b])]
        nodes = [
            *weights,
            *steps("x", "h0", clip),
            node("Conv", ["h0", "c.weight"], ["c"], pads=[1] * 4),
            node("Relu", ["c"], ["r"]),
            *steps("r", "h1", clip),
            node("GlobalAveragePool", ["h1"], ["m"]),
            node("Flatten", ["m"], ["f"]),
            *steps("f", "h2", clip),
            node("MatMul", ["h2", "l.weight"], ["p"]),
            *steps("p", "y", clip),
        ]
        self.path = build.save(
            build.model(nodes, constants, ("x", ("batch", 3, 6, 6))), folder / "model.onnx"
        )
        self.certificate = folder / "model.certificate.json"
        self.claims = self._claims()
        self.write()

    def _claims(self):
        widths = Widths(self.bits, self.activations, self.activations)
        layers, total, dense, stored = [], Energy.zero(), 0, self.bits or 32
        rows = zip(("c", "l"), (CONV, LINEAR), self.counts, strict=True)
        for name, shape, codes in rows:
            kernel = (codes != 0).sum(axis=(0, 1)) if codes.ndim > 2 else [np.count_nonzero(codes)]
            energy = layer_energy(shape, EYERISS, np.array(kernel, np.int64), widths=widths)
            total, dense = total + energy, dense + layer_energy(shape, EYERISS).relaxed
            cost = {"energy": energy.to_dict(), "widths": widths.to_dict()}
            layer = {"name": name, "initializers": [f"{name}.weight"], "bits": stored}
            layer |= {"weights": codes.size, "nonzeros": int(np.count_nonzero(codes))}
            layers.append(layer | {"uncounted": "", "cost": cost})
        nonzeros = sum(layer["nonzeros"] for layer in layers)
        limits = {"energy": (dense, total.relaxed), "nonzeros": (128, nonzeros)}
        limits |= {"weight_bits": (128 * 32, nonzeros * stored)}
        macs = CONV.macs + LINEAR.macs
        return {
            "format": "transform-certificate",
            "version": 1,
            "file": {"name": self.path.name},
            "hardware": HARDWARE,
            "limits": [
                {"limit": key, "asked": "<=100%", "maximum": base, "base": base, "holds": True}
                | {"reached": reached, "kind": "exact"}
                for key, (base, reached) in limits.items()
            ],
            "layers": layers,
            "totals": {"macs": macs, "weights": 128, "nonzeros": nonzeros}
            | {"energy": total.to_dict()},
        }

    def write(self):
        """The certificate, with the digest and size of the file as it is now."""
        content = self.path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self.claims["file"] |= {"sha256": digest, "bytes": len(content)}
        self.certificate.write_text(json.dumps(self.claims))

    def rewrite(self, change):
        """Change the file, and let the certificate fit its digest."""
        proto = onnx.load(self.path)
        change(proto.graph)
        onnx.save(proto, self.path)
        self.write()

    def told(self):
        """What the checker objects to."""
        return {problem.partition(":")[0] for problem in check(self.certificate)}


def _set(name, change):
    """Change an initialiser in place."""

    def rewrite(graph):
        tensor = next(item for item in graph.initializer if item.name == name)
        array = numpy_helper.to_array(tensor).copy()
        change(array)
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return rewrite


FORMS = {
    "int8": {},
    "int8 weights alone": {"activations": None},
    "int4": {"bits": 4, "kind": "INT4"},
    "int4 in blocks": {"bits": 4, "kind": "INT4", "block": 2, "activations": None},
    "four bits in bytes": {"bits": 4},
    "three bits": {"bits": 3, "kind": "INT4"},
    "four-bit activations": {"bits": 4, "kind": "INT4", "activations": 4},
    "floats": {"bits": None, "activations": None},
    "sparse floats": {"bits": None, "activations": None, "sparse": True},
    "sparse codes": {"sparse": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_an_honest_certificate_passes(form, tmp_path, capsys):
    net = Net(tmp_path, **FORMS[form])
    assert check(net.certificate) == []
    assert main([str(net.certificate)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "not checked" in line]


def _longer(graph):
    """A nonzero more in the convolution's gaps: one of them is cut in two."""
    tensors = {item.name: item for item in graph.initializer}
    gaps, values = (tensors[f"c.weight.{name}"] for name in ("gaps", "values"))
    old = numpy_helper.to_array(gaps)
    place = int(np.argmax(old > 1))
    new = np.insert(old, place, 1)
    new[place + 1] -= 1
    more = np.insert(numpy_helper.to_array(values), place, 1)
    gaps.CopyFrom(numpy_helper.from_array(new, gaps.name))
    values.CopyFrom(numpy_helper.from_array(more, values.name))


@pytest.mark.parametrize("form", FORMS)
def test_one_weight_more_is_seen(form, tmp_path):
    net = Net(tmp_path, **FORMS[form])
    names = {tensor.name for tensor in onnx.load(net.path).graph.initializer}
    [held] = names & {"c.weight", "c.weight_codes", "c.weight.gaps"}
    revive = _set(held, lambda a: a.__setitem__(tuple(np.argwhere(a == 0)[0]), 1))
    net.rewrite(_longer if held.endswith("gaps") else revive)
    expected = {"nonzeros", "energy", "energy, weights", "energy, exact", "weight_bits"}
    assert {*expected, "layer c, nonzeros", "layer c, energy"} <= net.told()
    assert not any("layer l" in what for what in net.told())


def test_a_scale_of_another_value_is_seen_by_the_digest_alone(tmp_path):
    net = Net(tmp_path)
    proto = onnx.load(net.path)
    _set("c.weight_scale", lambda a: a.__imul__(2))(proto.graph)
    onnx.save(proto, net.path)
    assert net.told() == {"sha256"}


def test_a_scale_of_zero_is_a_weight_less(tmp_path):
    net = Net(tmp_path)
    net.rewrite(_set("c.weight_scale", lambda a: a.__setitem__(0, 0)))
    assert {"layer c, nonzeros", "nonzeros", "energy"} <= net.told()


@pytest.mark.parametrize("bits", [3, 4])
def test_a_code_out_of_width_is_seen(bits, tmp_path):
    net = Net(tmp_path, bits=bits)
    net.rewrite(_set("l.weight_codes", lambda a: a.__setitem__((0, 0), 2 ** (bits - 1))))
    assert net.told() == {"layer l, bits", "layer l, charged bits"}


def test_a_width_that_is_claimed_too_small_is_seen(tmp_path):
    net = Net(tmp_path)
    net.claims["layers"][0]["bits"] = 4
    net.write()
    assert net.told() == {"layer c, bits", "weight_bits"}
    net.claims["layers"][0]["cost"]["widths"]["weights"] = 4
    net.write()
    assert {"layer c, bits", "layer c, charged bits", "energy", "layer c, energy"} <= net.told()


def test_floats_are_not_codes(tmp_path):
    net = Net(tmp_path, bits=None, activations=None)
    for layer in net.claims["layers"]:
        layer["bits"] = 8
        layer["cost"]["widths"]["weights"] = 8
    net.write()
    assert {f"layer {x}, {y}" for x in "cl" for y in ("bits", "charged bits")} <= net.told()


def test_a_width_that_is_charged_too_small_is_seen_even_if_energies_are_made_to_fit(tmp_path):
    wide, folder = Net(tmp_path), tmp_path / "narrow"
    folder.mkdir()
    narrow = Net(folder, bits=4)
    wide.claims = narrow.claims | {"layers": [
        {**theirs, "nonzeros": own["nonzeros"]}
        for own, theirs in zip(wide.claims["layers"], narrow.claims["layers"], strict=True)
    ]}  # fmt: skip
    wide.write()
    assert {"layer c, bits", "layer c, charged bits"} <= wide.told()


def _without(target):
    """Let what reads a rounded value read the value itself."""

    def change(graph):
        source = next(n.input[0] for n in graph.node if n.output[0] == f"{target}_codes")
        for reader in graph.node:
            for place, name in enumerate(reader.input):
                reader.input[place] = source if name == target else name

    return change


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("h0", {"layer c, inputs"}),
        ("h1", {"layer c, outputs"}),
        ("h2", {"layer l, inputs"}),
    ],
)
def test_a_rounding_that_is_gone_is_seen(target, told, tmp_path):
    net = Net(tmp_path)
    net.rewrite(_without(target))
    assert net.told() == told


def test_a_rounding_to_more_bits_is_seen(tmp_path):
    net = Net(tmp_path, bits=4, activations=4)
    net.rewrite(_set("high", lambda a: a.__setitem__((), 255)))
    assert net.told() == {f"layer {x}, {side}" for x in "cl" for side in ("inputs", "outputs")}


def test_outputs_that_something_else_reads_are_not_narrow(tmp_path):
    net = Net(tmp_path)
    net.rewrite(lambda graph: graph.node.append(node("Identity", ["c"], ["c_again"])))
    assert net.told() == {"layer c, outputs"}


def test_without_claims_the_files_own_widths_count(tmp_path):
    for form in ("int8", "int4", "four-bit activations", "floats"):
        folder = tmp_path / form
        folder.mkdir()
        net = Net(folder, **FORMS[form])
        found = recount(net.path, HARDWARE)
        assert found.energy == {k: net.claims["totals"]["energy"][k] for k in ENERGY}
        assert {*found.read.values()} == {Bits(net.bits, net.activations, net.activations)}


def test_every_name_on_the_way_to_a_weight_is_known(tmp_path):
    net = Net(tmp_path, sparse=True)
    found = recount(net.path, HARDWARE)
    assert {*found.weights} == {"c.weight.values", "l.weight.values"}
    assert found.aliases["c.weight"] == found.aliases["c.weight_codes"] == "c.weight.values"
    for layer in net.claims["layers"]:
        layer["initializers"] = [f"{layer['name']}.weight_codes"]
    net.write()
    assert net.told() == set()


def test_a_shared_weight_may_be_decoded_twice():
    codes = codes_of(4, 4)
    first, constants = as_codes("a", codes)
    second = node("DequantizeLinear", ["a_codes", "a_scale"], ["b"], axis=0)
    nodes = [first, second, node("MatMul", ["x", "a"], ["h"]), node("MatMul", ["h", "b"], ["y"])]
    graph = Graph(build.model(nodes, constants, ("x", ("n", 4))))
    assert len(list(graph.uses())) == 2
    assert {name: w.nonzeros for name, w in graph.weights.items()} == {
        "a_codes": np.count_nonzero(codes)
    }


@pytest.mark.parametrize(
    ("claimed", "holds"), [(3, False), (4, True), (5, True), (8, True), (9, False), (32, False)]
)
def test_which_bits_may_be_claimed_for_codes(claimed, holds, tmp_path):
    net = Net(tmp_path, bits=4, kind="INT4")
    found = recount(net.path, HARDWARE)
    assert all(weight.holds(claimed) is holds for weight in found.weights.values())


widths = st.sampled_from([None, 2, 4, 5, 8, 16, 32])


@settings(max_examples=60)
@given(
    weights=widths,
    inputs=widths,
    outputs=widths,
    word=st.sampled_from([8, 12, 16, 32]),
    cache=st.sampled_from([60, 200, 102400]),
    index=st.sampled_from([0, 5]),
    seed=st.integers(0, 9),
)
def test_energies_of_narrow_operands_agree_with_the_compilers(
    weights, inputs, outputs, word, cache, index, seed
):
    sizes = {"input_cache_bytes": cache, "weight_cache_bytes": 40, "index_bits": index}
    hardware = replace(EYERISS, word_bits=word, **sizes)
    codes = codes_of(4, 3, 3, 3, seed=seed).astype(np.float32)
    proto = build.layer("Conv", codes, ("n", 3, 6, 6), pads=[1] * 4)
    [use] = Graph(proto).uses()
    use = use._replace(bits=Bits(weights, inputs, outputs))
    found = summed([energy_of(use, hardware.to_dict())])
    counts = (codes != 0).sum(axis=(0, 1))
    energy = layer_energy(CONV, hardware, counts, widths=Widths(weights, inputs, outputs))
    assert {key: found[key] for key in ENERGY} == {key: getattr(energy, key) for key in ENERGY}


def test_narrow_energies_by_hand():
    # 4 -> 5 at one position, words of 16 bits: weights of 4, inputs of 8, outputs of 16 bits.
    proto = build.layer("MatMul", build.ones(4, 5), ("n", 4))
    [use] = Graph(proto).uses()
    found = summed([energy_of(use._replace(bits=Bits(4, 8, None)), HARDWARE)])
    assert found["weights"] == 20 * (200 + 6 + 1) / 4
    assert found["compute"] == 20 * 3 * 4 * 8 / 256
    assert found["activations"] == (4 * (200 + 6) + 4 * 5) / 2 + 5 * 200


def test_claims_are_charged_instead_of_what_the_file_has(tmp_path):
    net = Net(tmp_path)
    words = recount(net.path, HARDWARE, {f"{x}.weight": Claim(32) for x in "cl"})
    assert words.energy["relaxed"] > recount(net.path, HARDWARE).energy["relaxed"]
    assert words.bases == recount(net.path, HARDWARE).bases
    assert words.counts["weight_bits"] == 32 * words.counts["nonzeros"]


@pytest.mark.parametrize("before", ["mask", "pad", "codes"])
def test_masks_and_padding_are_seen_through_roundings(before):
    weight, mask = build.ones(3, 2, 3, 3), build.every_other(2, 6, 6)
    pads = np.array([0, 0, 1, 2, 0, 0, 3, 0], dtype=np.int64)
    attributes = {"pads": [1, 2, 3, 0]}
    if before == "mask":
        nodes, attributes = [node("Mul", ["x", "m"], ["a"]), *rounded("a", "h")], {}
        plain = [node("Mul", ["x", "m"], ["h"])]
    elif before == "pad":
        nodes, plain = [node("Pad", ["x", "p"], ["a"]), *rounded("a", "h")], []
    else:
        nodes = [
            node("QuantizeLinear", ["x", "s", "z"], ["a"]),
            node("Pad", ["a", "p", "z"], ["b"]),
            node("DequantizeLinear", ["b", "s", "z"], ["h"]),
        ]
        plain = []
    constants = {"m": mask, "w": weight, "p": pads, **SCALES}
    conv = node("Conv", ["h", "w"], ["y"])
    [use] = Graph(build.model([*nodes, conv], constants, ("x", ("n", 2, 6, 6)))).uses()
    conv = node("Conv", ["h" if plain else "x", "w"], ["y"], **attributes)
    [bare] = Graph(build.model([*plain, conv], constants, ("x", ("n", 2, 6, 6)))).uses()
    words = (energy_of(u._replace(bits=Bits()), HARDWARE) for u in (use, bare))
    assert next(words) == next(words)
    assert use.bits.inputs == 8


def test_codes_padded_with_another_code_are_inputs():
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        node("Pad", ["a", "p", "low"], ["b"]),
        node("DequantizeLinear", ["b", "s", "z"], ["h"]),
        node("Conv", ["h", "w"], ["y"]),
    ]
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=np.int64)
    constants = {"w": build.ones(3, 2, 3, 3), "p": pads, **SCALES}
    [use] = Graph(build.model(nodes, constants, ("x", ("n", 2, 6, 6)))).uses()
    assert use.inputs.shape == (1, 8, 8)


@settings(max_examples=30)
@given(seed=st.integers(0, 99), density=st.sampled_from([0.02, 0.3, 1.0]))
def test_gaps_decode_to_the_weight(seed, density):
    generator = np.random.default_rng(seed)
    whole = generator.standard_normal((5, 40)).astype(np.float32)
    whole[generator.random(whole.shape) > density] = 0
    places = np.flatnonzero(whole)
    if places.size and max(places[0], *np.diff(places), 0) < 256:
        nodes, constants = as_gaps("w", whole)
        proto = build.model(nodes, constants, output="w")
        np.testing.assert_array_equal(Constants(proto.graph).array("w"), whole)


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initialisers(linear):
    whole = build.every_other(4, 5)
    tensor = helper.make_sparse_tensor(
        numpy_helper.from_array(whole[whole != 0], "w"),
        numpy_helper.from_array(np.flatnonzero(whole) if linear else np.argwhere(whole), "i"),
        whole.shape,
    )
    proto = build.model([node("MatMul", ["x", "w"], ["y"])], {}, ("x", ("n", 4)))
    proto.graph.sparse_initializer.append(tensor)
    graph = Graph(proto)
    [use] = graph.uses()
    np.testing.assert_array_equal(use.nonzero[0], whole.T != 0)
    assert (graph.weights["w"].nonzeros, graph.weights["w"].bits) == (10, 32)
