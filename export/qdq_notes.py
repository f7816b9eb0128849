"""What a user of a quantized file should know."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from export.census import Census
from export.qdq_parity import Agreement
from export.qdq_weights import PACKED_BITS
from passes.graph import ModelGraph

if TYPE_CHECKING:
    from export.qdq import Draft


def notes_of(
    graph: ModelGraph,
    draft: Draft,
    floating: frozenset[str],
    agreement: Agreement,
    census: Census,
) -> tuple[str, ...]:
    """The notes of a file, each a sentence or two.

    Args:
        graph: The graph that it was written from.
        draft: The file as it was put together.
        floating: Sites that were asked to stay float.
        agreement: How it agrees with torch.
        census: What ONNX Runtime runs.
    """
    bits = {site: graph.encodings[site].bits for site in draft.integer}
    named = [sites for name, sites in draft.encoded.items() if name in census.decoded]
    decoded = {site for sites in named for site in sites} - set(bits)
    # Two products of codes of 8 and of 7 bits fit into the 16 bits that x86 adds them in.
    saturates = 8 in bits.values() and not all(grid.narrow for grid in draft.grids)
    packed = [site for site, width in bits.items() if width <= PACKED_BITS]
    return (
        *_floating(draft.floating - floating, bool(draft.grids)),
        *_left_out(len(draft.bypassed)),
        *_storage(decoded),
        *_products(census),
        *_packed(packed),
        *_signed(any(grid.signed for grid in draft.grids)),
        *(_saturation(agreement) if saturates else ()),
        *(f"mode {name} is not available: {why}" for name, why in agreement.failures.items()),
    )


def _floating(sites: Collection[str], rounded: bool) -> list[str]:
    if not sites:
        return []
    why = (
        "ONNX Runtime has no integer kernel for a layer like that where it stands (it needs a "
        "rounded input and, for a convolution, a rounded output)"
        if rounded
        else "no convolution and no product of the exported graph reads them as they are, or "
        "transposed; the file holds the values that their codes stand for"
    )
    return [f"float weights in {_names(sites)}: {why}"]


def _left_out(quantizers: int) -> list[str]:
    if not quantizers:
        return []
    return [f"{quantizers} quantizers serve no layer in integers and are left out"]


def _storage(sites: Collection[str]) -> list[str]:
    if not sites:
        return []
    return [
        f"storage only: the codes of {_names(sites)} make the file smaller, not faster; set the "
        "session option session.disable_quant_qdq=1, otherwise they are decoded at every "
        "inference, which is slower than float"
    ]


def _products(census: Census) -> list[str]:
    if not census.operators.get("MatMulNBits"):
        return []
    return [
        "ONNX Runtime rounds the inputs of MatMulNBits to 8 bits; the session option "
        "session.qdq_matmulnbits_accuracy_level=1 keeps them float"
    ]


def _packed(sites: Collection[str]) -> list[str]:
    if not sites:
        return []
    return [
        f"the codes of {_names(sites)} are stored in {PACKED_BITS} bits and widened to 8 when the "
        "file is loaded: they save bytes, not time"
    ]


def _signed(signed: bool) -> list[str]:
    if not signed:
        return []
    return [
        "activations have signed codes: ONNX Runtime runs these slowly on x86; quantize with "
        "unsigned ones for it"
    ]


def _saturation(agreement: Agreement) -> list[str]:
    errors = ", ".join(f"{name} {error:.3g}" for name, error in agreement.modes.items())
    return [
        "products of 8-bit codes may saturate on x86 without VNNI; largest errors against torch "
        f"here: {errors}. Weights of 7 bits are exact, and so is the session option "
        "session.x64quantprecision=1"
    ]


def _names(sites: Collection[str], most: int = 4) -> str:
    names = sorted(sites)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
