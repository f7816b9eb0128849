"""The teachers of the paper are searched through `compress`: VGG-19, ResNet-18, -34, ShuffleNet."""

from __future__ import annotations

import pytest
import torch
from embedding_runs import searched
from torch import nn

from bench.zoo import resnet18, resnet34, shufflenet, vgg19

pytestmark = pytest.mark.slow
PARAMS = {vgg19: 20_086_692, resnet18: 11_220_132, resnet34: 21_328_292, shufflenet: None}


def batches(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(8, 3, 32, 32, generator=generator),
            torch.randint(100, (8,), generator=generator),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("make", PARAMS, ids=lambda make: make.__name__)
def test_a_teacher_of_the_paper_is_searched_cut_and_exported(make, tmp_path):
    torch.manual_seed(0)
    model = make(100).eval()
    # A random network may be right about nothing, and nothing is no base of a share.
    data, valid = batches(1, 0), batches(1, 1)
    with torch.no_grad():
        valid = [(x, model(x).argmax(1)) for x, _ in valid]
    found = searched(
        "params<=40%",
        model=model,
        data=data,
        valid=valid,
        train=False,
        search={"steps": 2, "batch": 2, "keep": 1, "fidelity": (0,), "surrogate": "embedding"},
    )
    assert found.certificate.holds
    before = sum(p.numel() for p in model.parameters())
    assert PARAMS[make] in (before, None)
    after = sum(p.numel() for p in found.model.parameters())
    assert after == found.search.best.costs["params"] <= 0.4 * before
    assert found.model(valid[0][0]).shape == (8, 100)
    assert isinstance(found.model, nn.Module)
    written = found.export(tmp_path / "student.onnx")
    assert written.path.stat().st_size < 0.45 * 4 * before
    assert written.max_abs_error < 1e-3
