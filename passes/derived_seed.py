"""Seeds that follow from others, so that every random stream has its own."""

from __future__ import annotations

import hashlib
import json


def derived_seed(*parts: int | str) -> int:
    """A seed from 0 to 2^63 - 1 out of numbers and words; others give an unrelated one.

    The same on every machine and in every process.
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
