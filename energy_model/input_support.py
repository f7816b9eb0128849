"""Which inputs of a layer are ever nonzero: a constant of the network, the same for all samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class InputSupport:
    """The support of a layer's input mask, as a value that can be compared and hashed.

    Yang, Zhu, Liu, ICLR 2019, section on layer input masking.

    Attributes:
        shape: Of one sample's input, `(in_channels, *input_size)`.
        packed: Its entries in row-major order, eight to a byte.
    """

    shape: tuple[int, ...]
    packed: bytes

    @classmethod
    def of(cls, mask: NDArray[Any]) -> InputSupport:
        """The support of a mask of any type: its entries that are not 0."""
        return cls(tuple(mask.shape), np.packbits(np.asarray(mask) != 0).tobytes())

    @property
    def array(self) -> NDArray[np.bool_]:
        """The support, of shape `shape`."""
        bits = np.frombuffer(self.packed, dtype=np.uint8)
        flat = np.unpackbits(bits, count=self.size).astype(np.bool_)
        return flat.reshape(self.shape)

    @property
    def size(self) -> int:
        """Entries of the mask."""
        return int(np.prod(self.shape))

    @property
    def kept(self) -> int:
        """Entries that are not 0."""
        return int(np.count_nonzero(self.array))

    def __str__(self) -> str:
        return f"input mask keeps {self.kept:,} of {self.size:,}"
