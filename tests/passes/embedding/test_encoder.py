"""The encoder: unit length, no influence of the padding, files that can be trusted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_model.errors import ArgumentError, StorageError
from passes.embedding.encoder import Encoder, TokenBatch, load_encoders, save_encoders
from passes.embedding.tokens import LAYOUT_VERSION


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sequences(lengths, features=7, seed=0):
    numbers = np.random.default_rng(seed)
    return [numbers.standard_normal((n, features)).astype(np.float32) for n in lengths]


def encoder_of(seed=0, **sizes):
    return Encoder(7, **{"hidden": 8, **sizes}, generator=seeded(seed))


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6), layers=st.integers(1, 2))
def test_alone_or_with_longer_ones_the_embedding_is_the_same(lengths, layers):
    encoder = encoder_of(layers=layers)
    both = sequences(lengths)
    with torch.no_grad():
        together = encoder(TokenBatch.of(both))
        alone = torch.cat([encoder(TokenBatch.of([one])) for one in both])
    assert float((together - alone).abs().max()) < 1e-6
    assert float((together.norm(dim=1) - 1).abs().max()) < 1e-6


def test_what_stands_in_the_padding_does_not_matter():
    encoder = encoder_of()
    batch = TokenBatch.of(sequences([3, 9]))
    before = encoder(batch)
    batch.values[0, 3:] = 100.0
    assert torch.equal(encoder(batch), before)
    batch.values[0, 2] = 100.0
    assert not torch.equal(encoder(batch), before)


def test_the_mean_is_that_of_a_plain_lstm():
    encoder = encoder_of()
    [one] = sequences([5])
    outputs, _ = encoder.lstm(torch.from_numpy(one)[None])
    mean = outputs[0].mean(0)
    expected = mean / mean.norm()
    assert torch.allclose(encoder(TokenBatch.of([one]))[0], expected, atol=1e-6)


def test_the_order_of_layers_matters():
    encoder = encoder_of()
    [one] = sequences([6])
    embeddings = encoder(TokenBatch.of([one, one[::-1].copy()]))
    assert float((embeddings[0] - embeddings[1]).detach().norm()) > 1e-3


def test_first_weights_come_from_the_generator_alone():
    before = torch.random.get_rng_state()
    first, second, other = encoder_of(1), encoder_of(1), encoder_of(2)
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
        assert float(a.detach().abs().max()) <= 8**-0.5


def test_rows_of_a_batch():
    batch = TokenBatch.of(sequences([3, 9, 5]))
    part = batch[torch.tensor([2, 0])]
    assert len(batch) == 3 and part.lengths.tolist() == [5, 3]
    assert torch.equal(part.values[0], batch.values[2])


def test_saved_encoders_come_back(tmp_path):
    encoders = [encoder_of(seed, layers=2) for seed in range(3)]
    save_encoders(tmp_path / "saved", encoders)
    loaded = load_encoders(tmp_path / "saved")
    assert len(loaded) == 3
    batch = TokenBatch.of(sequences([4, 6]))
    for before, after in zip(encoders, loaded, strict=True):
        assert torch.equal(before(batch), after(batch))


def test_encoders_of_another_layout_are_refused(tmp_path):
    save_encoders(tmp_path / "saved", [encoder_of()])
    description = tmp_path / "saved" / "encoders.json"
    data = json.loads(description.read_text())
    data["layout"] = LAYOUT_VERSION + 1
    description.write_text(json.dumps(data))
    with pytest.raises(StorageError, match="token layout"):
        load_encoders(tmp_path / "saved")


@pytest.mark.parametrize("change", [{"hidden": 4}, {"count": 2}, {"hidden": "8"}, {"more": 1}])
def test_a_description_that_does_not_fit_is_refused(tmp_path, change):
    save_encoders(tmp_path / "saved", [encoder_of()])
    description = tmp_path / "saved" / "encoders.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | change))
    with pytest.raises(StorageError):
        load_encoders(tmp_path / "saved")


def test_damaged_and_missing_files_are_refused(tmp_path):
    with pytest.raises(StorageError, match="missing"):
        load_encoders(tmp_path / "nowhere")
    save_encoders(tmp_path / "saved", [encoder_of()])
    weights = tmp_path / "saved" / "encoders.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(StorageError, match="damaged"):
        load_encoders(tmp_path / "saved")


def test_what_cannot_be_saved_is_refused(tmp_path):
    with pytest.raises(ArgumentError):
        save_encoders(tmp_path / "saved", [])
    with pytest.raises(ArgumentError):
        save_encoders(tmp_path / "saved", [encoder_of(), encoder_of(hidden=4)])
    assert not (tmp_path / "saved").exists()


def test_bad_inputs_are_refused():
    with pytest.raises(ArgumentError, match="hidden"):
        Encoder(7, hidden=0, generator=seeded())
    with pytest.raises(ArgumentError, match="7 features"):
        Encoder(8, generator=seeded())(TokenBatch.of(sequences([3])))
    for bad in ([], [np.zeros((0, 7), np.float32)]):
        with pytest.raises(ArgumentError):
            TokenBatch.of(bad)
    with pytest.raises(ArgumentError):
        TokenBatch.of([np.zeros((2, 7), np.float32), np.zeros((2, 6), np.float32)])
