"""Quantized graphs made by hand: encodings of all weights, quantizers where runtimes want them."""

from __future__ import annotations

import operator

import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional as F

from passes.graph import ModelGraph
from passes.inputs import as_call
from passes.quantize.activations import ActivationQuantizer
from passes.quantize.encoding import Encoding, largest_code, snap
from passes.rewrite.freeze import in_rows
from passes.tracing.trace import trace

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_MOVES = {F.pad, torch.flatten, operator.getitem, torch.max_pool2d, F.max_pool2d}
_MOVING = (nn.Flatten, nn.MaxPool2d, nn.Dropout, nn.Identity)


def fitted(weight, bits, axis=0, block=None):
    matrix = weight.movedim(axis, 0).reshape(weight.shape[axis], -1).abs()
    parts = [matrix] if block is None else list(matrix.split(block, dim=1))
    scale = torch.stack([p.amax(1) for p in parts], 1).clamp_min(1e-6) / largest_code(bits)
    return Encoding(bits, snap(scale), axis, block)


def encode(graph: ModelGraph, bits=8, block=None, *, only=None) -> ModelGraph:
    """Put every weight on a grid; blocks for linear layers."""
    for site in graph.compressible:
        if only is not None and site.name not in only:
            continue
        weight = graph.weight(site)
        use = site.uses[0].shape
        axis = 1 if use.transposed else 0
        shaped = weight.reshape(use.out_channels, -1) if weight.dim() == 1 else weight
        blocks = block if use.is_linear else None
        encoding = fitted(shaped, bits, axis, blocks)
        graph.encodings[site.name] = encoding
        with torch.no_grad():
            weight.copy_(encoding.nearest(in_rows(weight, encoding)).reshape(weight.shape))
    return graph


def _kind(graph, node):
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    if node.op in ("output", "get_attr"):
        return "none"
    if isinstance(module, _NORMS):
        return "norm"
    if isinstance(module, nn.ReLU | nn.ReLU6) or node.target in (F.relu, torch.relu, "relu"):
        return "relu"
    if isinstance(module, _LAYERS):
        return "layer"
    if isinstance(module, _MOVING) or node.target in _MOVES or node.target in ("flatten", "view"):
        return "move"
    return "other"


def _rounded(graph, node: Node) -> bool:
    kind = _kind(graph, node)
    users = list(node.users)
    if kind in ("none", "move"):
        return False
    after = _kind(graph, users[0]) if len(users) == 1 else ""
    if kind == "layer":
        return after not in ("norm", "relu")
    return not (kind in ("norm", "other") and after == "relu")


def quantize(
    model, inputs, *, weights=8, activations=8, signed=False, last=True, block=None, only=None
) -> ModelGraph:
    """Trace a model, encode its weights, and round every tensor that an operator computes.

    Args:
        last: Whether the output of the model is rounded too.
        only: Names of the sites to encode.
    """
    graph = trace(model.eval(), as_call(model, inputs), train=False)
    encode(graph, weights, block, only=only)
    if not activations:
        return graph
    module = graph.graph_module
    values = _Values(module).collect(*graph.call.args)
    for node in list(module.graph.nodes):
        outputs = any(user.op == "output" for user in node.users)
        if not _rounded(module, node) or (outputs and not last) or isinstance(values[node], tuple):
            continue
        quantizer = ActivationQuantizer(activations, signed=signed)
        quantizer.set_range(float(values[node].min()), float(values[node].max()))
        name = f"quantizer_{node.name}"
        module.add_submodule(name, quantizer)
        with module.graph.inserting_after(node):
            new = module.graph.call_module(name, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
    module.graph.lint()
    module.recompile()
    graph.rewritten = True
    return graph


class _Values(torch.fx.Interpreter):
    def collect(self, *args):
        self.values = {}
        with torch.no_grad():
            self.run(*args)
        return self.values

    def run_node(self, n):
        self.values[n] = super().run_node(n)
        return self.values[n]


def seeded(build, shape, seed=0):
    """A model and random inputs; batch norms get statistics of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for part in model.modules():
            if isinstance(part, _NORMS):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, std=0.3)
        x = torch.randn(shape)
        model.train()
        for _ in range(20):
            model(torch.randn(8, *shape[1:]))
        return model.eval(), x
