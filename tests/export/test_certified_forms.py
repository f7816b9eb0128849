"""Real files of every form, recounted by the exporter and by the script that only reads them."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from quantized_nets import quantize, seeded
from torch import nn

from bench.check_certificate import check
from energy_model.hardware import load_hardware
from export.qdq import write_qdq
from export.sparse import write_sparse
from passes.analysis.costs import cost_table
from passes.quantize.widths import apply_widths
from transform.certificate import Source, certify

# Files of every form, counted again by the script: `make test-slow` runs them.
pytestmark = pytest.mark.slow

EYERISS = load_hardware("eyeriss")


def small():
    """Two convolutions, one of them in groups, a norm, a pool and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 64),
    )


CASES = {
    "int8": ({}, write_qdq),
    "int4 in blocks": ({"weights": 4, "activations": 0, "block": 32}, write_qdq),
    "three bits and four": ({"weights": 3, "activations": 4}, write_qdq),
    "sparse floats": ({"activations": 0, "only": ()}, write_sparse),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Graph, file and certificate of a case, made once."""
    made = {}

    def make(name):
        if name not in made:
            options, write = CASES[name]
            graph = quantize(*seeded(small, (2, 3, 8, 8)), **options)
            with torch.no_grad():
                for site in graph.sites:
                    weight = graph.weight(site).view(-1)
                    weight[torch.arange(len(weight)) % 4 > 0] = 0
            apply_widths(graph)
            path = tmp_path_factory.mktemp("forms") / "model.onnx"
            made[name] = graph, write(graph, EYERISS, path)
        graph, written = made[name]
        return graph, written, certificate_of(written)

    return make


def certificate_of(written):
    recount = written.recount
    names = {site: stored.name for site, stored in recount.stored.items()}
    source = Source(written.path.name, recount.sha256, written.bytes)
    path = written.path.with_suffix(".certificate.json")
    path.write_text(json.dumps(certify([], {}, source, recount.costs, names).to_dict()))
    return path


@pytest.mark.parametrize("name", CASES)
def test_the_file_counts_what_the_model_counts_and_the_script_agrees(name, exported):
    graph, written, certificate = exported(name)
    assert check(certificate) == []
    table, model = written.recount.costs, cost_table(graph, EYERISS)
    assert [row.name for row in table] == [site.name for site in graph.sites]
    assert table.total.energy == model.total.energy
    assert [(r.bits, r.widths, r.nonzeros) for r in table] == [
        (r.bits, r.widths, r.nonzeros) for r in model
    ]


def _revive(array):
    array[tuple(np.argwhere(array == 0)[0])] = 1


@pytest.mark.parametrize("name", CASES)
def test_one_element_more_is_seen(name, exported, tmp_path):
    """Also where the digest is made to fit."""
    _, written, certificate = exported(name)
    proto = onnx.load(written.path)
    claims = json.loads(certificate.read_text())
    stored = {"int8": "0.weight_codes", "int4 in blocks": "4.weight_codes"}
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    if name == "sparse floats":
        held = next(t for t in tensors.values() if t.name.endswith(".values"))
        array = numpy_helper.to_array(held).copy()
        array[-1] = 0  # an element less
    else:
        held = tensors[stored.get(name, "7.weight_codes")]
        array = numpy_helper.to_array(held).copy()
        _revive(array)
    held.CopyFrom(numpy_helper.from_array(array, held.name))
    path = tmp_path / written.path.name
    onnx.save(proto, path)
    claims["file"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    claims["file"]["bytes"] = path.stat().st_size
    changed = tmp_path / certificate.name
    changed.write_text(json.dumps(claims))
    told = {problem.partition(":")[0] for problem in check(changed)}
    assert {"nonzeros", "energy, weights", "energy, exact", "energy, relaxed"} <= told
    assert told.isdisjoint({"sha256", "bytes", "weights", "macs"})
