"""Results with input masks: saved, loaded, exported; smaller where channels are masked entirely."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transform_nets import SmallConv, made

import transform
from energy_model.hardware import load_hardware
from export.dense import write_dense
from passes.analysis.costs import cost_table
from passes.inputs import as_call
from passes.rewrite.input_masks import attach_input_masks, mask_of
from passes.rewrite.masked_channels import remove_masked_channels
from passes.tracing.trace import trace
from transform import storage
from transform.fingerprint import state_digest

# Seconds each: `make test-slow` runs them.
pytestmark = pytest.mark.slow

DEAD = (1, 4)


class Net(nn.Module):
    """Two convolutions, a norm between them: input `(N, 2, 8, 8)`, 3 classes."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)
        with torch.no_grad():
            self.second.weight[:, DEAD] = 0.0

    def features(self, x):
        x = F.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        return torch.relu(self.second(x)).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


class Leaf(nn.Module):
    """A layer of the user's own that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        hidden = self.inner(x)
        return -hidden if hidden.sum() > 0 else hidden


class OtherLeaf(Leaf):
    """Another class in its place."""


class WithLeaf(Net):
    """`Net` with an opaque leaf before its head."""

    def __init__(self, leaf=Leaf):
        super().__init__()
        self.leaf = leaf()

    def forward(self, x):
        return self.head(self.leaf(self.features(x)))


def doubled(x):
    """A function of the user's own."""
    return x * 2 if x.sum() > 0 else -x


torch.fx.wrap("doubled")


class WithFunction(Net):
    """`Net` with a function that is not traced."""

    def forward(self, x):
        return self.head(doubled(self.features(x)))


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def batches():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 2, 8, 8, generator=generator)
    return list(zip(x.split(8), x.mean((1, 2, 3)).mul(8).long().clamp(0, 2).split(8), strict=True))


def compressed(build, **options):
    """What one short alternation of weights and masks leaves."""
    options = {
        "method": transform.EnergyProjection(input_mask=True, interval=1, mask_keep=(0.7,)),
        "train": {"epochs": 1, "lr": 1e-4},
        "progress": "none",
    } | options
    return transform.compress(seeded(build), "energy<=60%", batches(), **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Result and folder for a class of model; every class is compressed once."""
    root, done = tmp_path_factory.mktemp("saved"), {}

    def get(build):
        if build not in done:
            result = compressed(build)
            done[build] = result, result.save(root / build.__name__)
        return done[build]

    return get


def outputs(result):
    with torch.no_grad():
        return result.model.eval()(batches()[0][0])


CLASSES = (Net, WithLeaf, WithFunction)


@pytest.mark.parametrize("build", CLASSES)
def test_channels_that_are_masked_entirely_are_gone(saved, build):
    result = saved(build)[0]
    layers = dict(result.model.named_modules())
    assert layers["first"].out_channels == layers["norm"].num_features
    assert layers["first"].out_channels == layers["second"].in_channels
    assert layers["first"].out_channels <= 8 - len(DEAD)
    assert any("input channels removed" in d.what for d in result.decisions)
    assert result.certificate.holds


@pytest.mark.parametrize("build", CLASSES)
def test_everything_comes_back_with_an_instance_of_the_original(saved, build):
    result, folder = saved(build)
    given = seeded(build, seed=9)
    untouched = state_digest(given)
    loaded = transform.load(folder, model=given)
    assert state_digest(given) == untouched
    assert list(loaded.model.state_dict()) == list(result.model.state_dict())
    assert state_digest(loaded.model) == state_digest(result.model)
    assert loaded.certificate == result.certificate
    assert loaded.certificate.source.sha256 == state_digest(loaded.model)
    assert loaded.decisions == result.decisions
    assert torch.equal(outputs(loaded), outputs(result))
    assert {s.name: s.uses for s in loaded.graph.sites} == {
        s.name: s.uses for s in result.graph.sites
    }


def test_a_graph_of_torch_alone_needs_no_model_and_ignores_one(saved):
    result, folder = saved(Net)
    for given in (None, nn.Linear(1, 1), seeded(Net), seeded(WithLeaf)):
        assert torch.equal(outputs(transform.load(folder, given)), outputs(result))


def test_the_users_layer_is_a_copy_with_the_saved_weights(saved):
    result, folder = saved(WithLeaf)
    given = seeded(WithLeaf, seed=9)
    leaf = transform.load(folder, model=given).model.leaf
    assert type(leaf) is Leaf
    assert leaf is not given.leaf
    assert torch.equal(leaf.inner.weight, result.model.leaf.inner.weight)


def test_modes_come_back_with_an_instance(tmp_path):
    model = seeded(WithLeaf).train()
    model.norm.eval()
    result = compressed(lambda: model)
    loaded = transform.load(result.save(tmp_path / "saved"), seeded(WithLeaf).eval()).model
    assert loaded.training
    assert loaded.leaf.training
    assert not loaded.norm.training


@pytest.mark.parametrize("build", CLASSES)
def test_a_loaded_result_can_be_saved_again(saved, build, tmp_path):
    result, folder = saved(build)
    again = transform.load(folder, seeded(build)).save(tmp_path / "again")
    assert torch.equal(outputs(transform.load(again, seeded(build, 3))), outputs(result))
    for name in ("compressed.json", "weights.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


WRONG = {
    "nothing": (WithLeaf, lambda: None, r"^leaf: .*Leaf.*torch.*model="),
    "another model": (WithLeaf, lambda: nn.Linear(1, 1), r"^leaf: .*the model given has none"),
    "another leaf": (WithLeaf, lambda: WithLeaf(OtherLeaf), r"^leaf: .*holds a .*OtherLeaf"),
    "a graph": (
        WithLeaf,
        lambda: WithLeaf(lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8)))),
        r"^leaf: .*holds a Sequential here",
    ),
    "no function": (WithFunction, lambda: None, r"calls .*doubled.*model="),
    "a model without it": (WithFunction, lambda: seeded(Net), r"calls .*doubled.*model="),
    "a model of other inputs": (WithFunction, lambda: nn.Linear(1, 1), r"does not run.*model="),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_model_that_lacks_what_is_needed_is_refused(saved, name):
    build, given, match = WRONG[name]
    folder = saved(build)[1]
    with pytest.raises(transform.StorageError, match=match) as caught:
        transform.load(folder, given())
    assert "GraphModule" not in str(caught.value)


def test_no_message_names_a_class_of_fx(tmp_path):
    model, example = made(SmallConv)
    result = transform.compress(model, "nonzeros<=40%", example_inputs=example)
    again = transform.load(result.save(tmp_path / "saved")).save(tmp_path / "again")
    with pytest.raises(transform.StorageError, match="instance of SmallConv") as caught:
        transform.load(again, nn.Linear(1, 1))
    assert "GraphModule" not in str(caught.value)


def test_a_plain_result_is_of_the_users_class(tmp_path):
    model, example = made(SmallConv)
    result = transform.compress(model, "nonzeros<=40%", example_inputs=example)
    folder = result.save(tmp_path / "saved")
    for saved_before in (False, True):
        description = json.loads((folder / "compressed.json").read_text())
        assert description["rewritten"] is False
        if saved_before:  # by a release that knew no rewritten graphs
            del description["rewritten"], description["sha256"]
            text = json.dumps(storage._sealed(description))
            (folder / "compressed.json").write_text(text)
        assert type(transform.load(folder, SmallConv()).model) is SmallConv


def forged(folder, target, change):
    """A copy of the folder whose description was changed, its digest made right again."""
    description = json.loads((folder / "compressed.json").read_text())
    del description["sha256"]
    change(description)
    target.mkdir()
    (target / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    (target / "compressed.json").write_text(json.dumps(storage._sealed(description)))
    return target


@pytest.mark.parametrize("name", ["posix.system", "builtins.eval", "doubled"])
def test_a_forged_function_is_not_found_by_its_name(saved, tmp_path, name):
    def change(description):
        [node] = [n for n in description["graph"]["nodes"] if isinstance(n["target"], dict)]
        node["target"] = {"custom": name}

    folder = forged(saved(WithFunction)[1], tmp_path / "forged", change)
    with pytest.raises(transform.StorageError, match=f"calls {name}"):
        transform.load(folder, seeded(WithFunction))


def test_a_forged_layer_is_taken_from_no_other_place(saved, tmp_path):
    def change(description):
        [module] = [m for m in description["graph"]["modules"] if m["path"] == "leaf"]
        module["custom"] = "torch.nn.modules.linear.Linear"

    folder = forged(saved(WithLeaf)[1], tmp_path / "forged", change)
    with pytest.raises(transform.StorageError, match=r"^leaf: .*holds a .*Leaf"):
        transform.load(folder, seeded(WithLeaf))


@pytest.mark.parametrize("value", [1, "yes", None, []])
def test_a_malformed_mark_is_damage(saved, tmp_path, value):
    folder = forged(saved(Net)[1], tmp_path / "forged", lambda d: d.update(rewritten=value))
    with pytest.raises(transform.StorageError, match="'rewritten' is"):
        transform.load(folder)


def weights(path):
    return {item.name: tuple(item.dims) for item in onnx.load(path).graph.initializer}


def test_the_file_is_smaller_and_its_certificate_agrees(saved, tmp_path):
    result, folder = saved(Net)
    exported = result.export(tmp_path / "net.onnx")
    kept = result.model.first.out_channels
    stored = weights(exported.path)
    assert stored["first.weight"] == (kept, 2, 3, 3)
    assert stored["second.weight"] == (8, kept, 3, 3)
    certificate = json.loads(exported.certificate.read_text())
    assert certificate["holds"] is True
    assert certificate["totals"]["nonzeros"] == result.costs.after.total.nonzeros
    assert certificate["totals"]["energy"] == result.costs.after.total.energy.to_dict()
    rows = {row["name"]: row["initializers"] for row in certificate["layers"]}
    assert rows["first"] == ["first.weight"]
    again = transform.load(folder).export(tmp_path / "again" / "net.onnx")
    assert again.path.read_bytes() == exported.path.read_bytes()


def test_the_file_is_smaller_by_what_is_cut(tmp_path):
    model, x = seeded(Net).eval(), batches()[0][0]
    graph = trace(model, as_call(model, x))
    for mask in attach_input_masks(graph):
        if mask.site == "second":
            mask_of(graph, mask)[list(DEAD)] = 0.0
    hardware = load_hardware("eyeriss")
    files, counted = [], []
    for name in ("whole", "smaller"):
        finished = trace(graph.runnable, graph.call)
        written = write_dense(finished, hardware, tmp_path / f"{name}.onnx")
        model_energy = cost_table(finished, hardware).total.energy
        assert written.recount.costs.total.energy == model_energy
        files.append(written)
        counted.append(model_energy.relaxed)
        remove_masked_channels(graph)
    sizes = [sum(math.prod(shape) for shape in weights(w.path).values()) for w in files]
    # Rows of 18 weights and a bias (the norm is folded), columns of 72 weights; both masks.
    assert sizes[0] - sizes[1] == 2 * (18 + 1 + 72) + 2 * 64 + 8 * 16
    assert files[1].bytes < files[0].bytes
    assert counted[1] < counted[0]
    sessions = [onnxruntime.InferenceSession(str(w.path)) for w in files]
    whole, smaller = (s.run(None, {s.get_inputs()[0].name: x.numpy()})[0] for s in sessions)
    np.testing.assert_allclose(smaller, whole, rtol=1e-5, atol=1e-6)


def test_masks_that_keep_everything_leave_no_node(saved, tmp_path):
    result = saved(Net)[0]
    exported = result.export(tmp_path / "net.onnx")
    products = [n for n in onnx.load(exported.path).graph.node if n.op_type == "Mul"]
    masks = [name for name, _ in result.model.named_buffers() if "mask" in name]
    assert len(products) == len(masks)
    stored = load_file(saved(Net)[1] / "weights.safetensors")
    assert sorted(n for n in stored if "mask" in n) == sorted(masks)


def test_rules_are_shares_of_the_layer_as_it_was():
    rules = {"first": {"max_sparsity": 0.95}, "second": {"max_sparsity": 0.8}}
    result = compressed(Net, layers=rules)
    sizes = {site.name: site.size for site in result.graph.sites}
    assert sizes["first"] < 144
    assert sizes["second"] < 576
    assert result.costs.after["first"].nonzeros >= 0.05 * 144
    assert result.costs.after["second"].nonzeros >= 0.2 * 576


def test_what_a_rule_needs_is_not_cut():
    result = compressed(Net, layers={"first": {"max_sparsity": 0.4}, "head": False})
    had = 8 * 2 * 3 * 3
    assert int(torch.count_nonzero(result.model.first.weight)) >= round(0.6 * had)
    assert int(torch.count_nonzero(result.model.head.weight)) == 24
    assert "first" in {site.name for site in result.graph.sites}
