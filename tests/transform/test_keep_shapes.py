"""Dead channels go after any method, unless the shapes are to stay."""

from __future__ import annotations

import pytest
import torch

import transform
from bench.zoo.lenet_300_100 import lenet_300_100

# Seconds each: `make test-slow` runs them.
pytestmark = pytest.mark.slow

IMAGES = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def lenet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lenet_300_100().eval()


def compressed(method, **options):
    return transform.compress(
        lenet(), "nonzeros<=2%", example_inputs=IMAGES, method=method, progress="none", **options
    )


@pytest.mark.parametrize(
    "method", [transform.Magnitude(scope="layer"), pytest.param("energy", marks=pytest.mark.slow)]
)
def test_the_small_model_computes_the_same(method, tmp_path):
    small, whole = compressed(method), compressed(method, keep_shapes=True)
    assert small.certificate.holds and whole.certificate.holds
    sizes = [sum(p.numel() for p in result.model.parameters()) for result in (small, whole)]
    assert sizes[0] < 0.5 * sizes[1] == 0.5 * 266_610
    with torch.no_grad():
        torch.testing.assert_close(small.model(IMAGES), whole.model(IMAGES), rtol=1e-5, atol=1e-6)
    found = {d.layer for d in small.decisions if d.what == "dead channels removed"}
    assert found
    assert not any("dead" in d.what for d in whole.decisions)
    files = [result.export(tmp_path / f"{i}.onnx") for i, result in enumerate((small, whole))]
    assert files[0].bytes < 0.5 * files[1].bytes
    assert small.certificate.rows[0].reached <= whole.certificate.rows[0].reached


def test_a_small_model_is_saved_and_loaded(tmp_path):
    small = compressed(transform.Magnitude(scope="layer"))
    small.save(tmp_path / "small", onnx=True)
    for model in (None, lenet()):
        loaded = transform.load(tmp_path / "small", model=model)
        with torch.no_grad():
            assert torch.equal(loaded.model(IMAGES), small.model(IMAGES))


def test_a_layer_with_hooks_keeps_its_dead_channels():
    model = lenet()
    model[1].register_forward_hook(lambda *_: None)
    result = transform.compress(
        model,
        "nonzeros<=2%",
        example_inputs=IMAGES,
        method=transform.Magnitude(scope="layer"),
        progress="none",
    )
    assert result.model[1].weight.shape == (300, 784)
    assert result.model[3].out_features < 100


def test_a_pattern_keeps_the_shapes_it_counts_in(tmp_path):
    method = transform.Magnitude(scope="layer", pattern="column_groups:10")
    result = transform.compress(
        lenet(), "nonzeros<=10%", example_inputs=IMAGES, method=method, progress="none"
    )
    assert result.model[1].weight.shape == (300, 784)
    [told] = [d for d in result.decisions if d.what == "dead channels stay"]
    assert "break the pattern" in told.why
    files = [result.export(tmp_path / f"{form}.onnx", form) for form in ("dense", "column_groups")]
    assert files[1].bytes < files[0].bytes


@pytest.mark.parametrize("method", ["l1", "magnitude"])
def test_an_example_without_a_batch(method):
    model = torch.nn.Sequential(torch.nn.Linear(8, 30), torch.nn.ReLU(), torch.nn.Linear(30, 3))
    with torch.no_grad():
        model[0].weight[:4] = 0
    result = transform.compress(
        model.eval(), "nonzeros<=60%", example_inputs=torch.randn(8), method=method, progress="none"
    )
    assert result.certificate.holds
    assert result.model[0].out_features <= 30


def test_a_complex_model():
    layers = torch.nn.Linear(8, 30), torch.nn.Linear(30, 3)
    model = torch.nn.Sequential(*layers).to(torch.complex64).eval()
    with torch.no_grad():
        model[0].weight[:4] = 0
    example = torch.randn(2, 8, dtype=torch.complex64)
    result = transform.compress(
        model, "nonzeros<=95%", example_inputs=example, method="magnitude", progress="none"
    )
    assert result.certificate.holds
