from __future__ import annotations

import hashlib
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

from passes.coding.byte_model import decode_bytes, encode_bytes
from passes.coding.range_coder import Decoder, Encoder, Meter

TEXT = b"".join(
    b"\x0a\x0dlayer%d.weight\x0a\x0bconv%d.bias\x12\x06node_%d\x1a\x04Conv\x00" % (i, i, i * 7)
    for i in range(12)
)
OTHER = TEXT.replace(b"layer", b"block").replace(b"\x12", b"\x13")


def size_in_bytes(data: bytes, prior: bytes = b"") -> int:
    encoder, meter = Encoder(), Meter()
    encode_bytes(encoder, data, prior)
    encode_bytes(meter, data, prior)
    coded = encoder.finish()
    assert decode_bytes(Decoder(coded), len(data), prior) == data
    assert 8 * len(coded) < meter.total + 8.01
    return len(coded)


@settings(max_examples=30)
@given(st.binary(max_size=60), st.binary(max_size=20))
def test_bytes_come_back(data: bytes, prior: bytes) -> None:
    size_in_bytes(data, prior)


def test_structured_bytes_cost_less_than_by_zlib() -> None:
    assert size_in_bytes(TEXT) < 0.75 * len(zlib.compress(TEXT, 9))


def test_a_prior_makes_similar_bytes_cheap() -> None:
    assert size_in_bytes(OTHER, TEXT) < 0.4 * size_in_bytes(OTHER)
    assert size_in_bytes(TEXT, TEXT) < 12


def test_noise_costs_little_more_than_itself() -> None:
    noise = hashlib.shake_256(b"noise").digest(400)
    assert size_in_bytes(noise) < 1.06 * 400


def test_coding_does_not_change_the_prior() -> None:
    first = size_in_bytes(OTHER, TEXT)
    size_in_bytes(b"something else", TEXT)
    assert size_in_bytes(OTHER, TEXT) == first


def test_another_prior_gives_other_bytes() -> None:
    encoder = Encoder()
    encode_bytes(encoder, OTHER, TEXT)
    assert decode_bytes(Decoder(encoder.finish()), len(OTHER), OTHER) != OTHER


def test_any_stream_gives_bytes() -> None:
    for data in (b"", b"\xff" * 40, bytes(range(100))):
        assert len(decode_bytes(Decoder(data), 70, TEXT[:50])) == 70


def test_bytes_share_a_stream() -> None:
    encoder = Encoder()
    encode_bytes(encoder, TEXT[:90])
    encoder.bits(12345, 20)
    decoder = Decoder(encoder.finish())
    assert decode_bytes(decoder, 90) == TEXT[:90]
    assert decoder.bits(0, 20) == 12345


def test_the_bytes_are_the_same_everywhere() -> None:
    encoder = Encoder()
    encode_bytes(encoder, OTHER, TEXT)
    assert hashlib.sha256(encoder.finish()).hexdigest()[:16] == "267d970c19c97d25"
