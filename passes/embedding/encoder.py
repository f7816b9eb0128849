"""The encoder: a sequence of tokens becomes a point on the unit sphere.

A bidirectional LSTM reads the tokens of an architecture, its outputs are averaged over the layers
and scaled to length 1, as in Cao, Wang, Kitani, "Learnable Embedding Space for Efficient Neural
Architecture Compression", ICLR 2019, section 3.1. The default is one layer of 32 units on scaled
tokens; the paper's is four layers of 64 on raw ones (`Encoder(272, hidden=64, layers=4)`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from energy_model.errors import ArgumentError, StorageError
from passes.embedding.tokens import FEATURES, LAYOUT_VERSION
from passes.storage.atomic import json_bytes, read_json, write_folder
from passes.storage.tensors import check_sha256, load_tensors, save_tensors, sha256_file

_WEIGHTS, _DESCRIPTION = "encoders.safetensors", "encoders.json"
# All that `save_encoders` writes.
ENCODER_FILES = (_WEIGHTS, _DESCRIPTION)
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Sequences of unequal length, padded with zeros at the end.

    Attributes:
        values: Float `(sequences, longest, features)`.
        lengths: Int64 `(sequences,)`, each at least 1, on the CPU.
    """

    values: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, sequences: Sequence[NDArray[np.float32]]) -> TokenBatch:
        """Pad sequences of `(layers, features)`.

        Raises:
            ArgumentError: There is none, one is empty, or they differ in their features.
        """
        if not sequences:
            raise ArgumentError("there is no sequence of tokens", where="sequences")
        widths = {sequence.shape[1:] for sequence in sequences}
        if len(widths) != 1 or any(len(sequence) == 0 for sequence in sequences):
            raise ArgumentError(
                "sequences of tokens are empty or differ in their features", where="sequences"
            )
        lengths = [len(sequence) for sequence in sequences]
        values = np.zeros((len(sequences), max(lengths), *widths.pop()), dtype=np.float32)
        for row, sequence in zip(values, sequences, strict=True):
            row[: len(sequence)] = sequence
        return cls(torch.from_numpy(values), torch.tensor(lengths))

    def __getitem__(self, rows: Tensor) -> TokenBatch:
        return TokenBatch(self.values[rows], self.lengths[rows])

    def __len__(self) -> int:
        return len(self.lengths)


class Encoder(nn.Module):
    """A bidirectional LSTM, the mean over layers, and a projection onto the unit sphere.

    Args:
        features: Numbers in a token.
        hidden: Units in each direction; an embedding has twice as many numbers.
        layers: Of the LSTM.
        generator: Source of the first weights, on the CPU.

    Raises:
        ArgumentError: A number is below 1.
    """

    def __init__(
        self, features: int = FEATURES, *, hidden: int = 32, layers: int = 1, generator: Generator
    ) -> None:
        super().__init__()
        for name, value in (("features", features), ("hidden", hidden), ("layers", layers)):
            if value < 1:
                raise ArgumentError(f"{value!r} is not at least 1", where=name)
        self.features, self.hidden, self.layers = features, hidden, layers
        # On the meta device, because its own initialisation draws from the global generator.
        with torch.device("meta"):
            lstm = nn.LSTM(features, hidden, layers, bidirectional=True, batch_first=True)
        self.lstm = lstm.to_empty(device="cpu")
        bound = 1 / math.sqrt(hidden)
        with torch.no_grad():
            for parameter in self.lstm.parameters():
                parameter.uniform_(-bound, bound, generator=generator)

    def check(self, features: int) -> None:
        """See that tokens fit.

        Raises:
            ArgumentError: They have more or fewer features than the encoder reads.
        """
        if features != self.features:
            raise ArgumentError(
                f"tokens of {features} features do not fit an encoder of {self.features}",
                where="tokens",
                remedy="Use an encoder that was made for this layout of tokens.",
            )

    def forward(self, batch: TokenBatch) -> Tensor:
        """Embed a batch.

        Args:
            batch: Of as many features as the encoder reads.

        Returns:
            `(sequences, 2 * hidden)`, every row of length 1; it does not depend on the padding.

        Raises:
            ArgumentError: The features do not fit.
        """
        self.check(batch.values.shape[-1])
        packed = pack_padded_sequence(
            batch.values, batch.lengths, batch_first=True, enforce_sorted=False
        )
        outputs, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        # Padded outputs are zeros, and the sum has the direction of the mean.
        return nn.functional.normalize(outputs.sum(1), dim=1)


@dataclass(frozen=True)
class _Description:
    """What the JSON beside the weights says."""

    format: int
    layout: int
    count: int
    features: int
    hidden: int
    layers: int
    sha256: str


def save_encoders(path: Path, encoders: Sequence[Encoder]) -> None:
    """Write encoders into a new folder, to start another search with.

    Args:
        path: The folder; it must not exist or be empty.
        encoders: At least one, all of the same sizes.

    Raises:
        ArgumentError: There is none, or they differ in size.
        StorageError: The folder holds something, or the disk refuses.
    """
    sizes = {(encoder.features, encoder.hidden, encoder.layers) for encoder in encoders}
    if len(sizes) != 1:
        raise ArgumentError("there must be encoders, all of one size", where="encoders")
    features, hidden, layers = sizes.pop()
    tensors = {
        f"{number}.{name}": tensor
        for number, encoder in enumerate(encoders)
        for name, tensor in encoder.state_dict().items()
    }

    def describe(file: Path) -> None:
        description = _Description(
            format=_FORMAT,
            layout=LAYOUT_VERSION,
            count=len(encoders),
            features=features,
            hidden=hidden,
            layers=layers,
            sha256=sha256_file(file.with_name(_WEIGHTS)),
        )
        file.write_bytes(json_bytes(asdict(description)))

    def weights(file: Path) -> None:
        save_tensors(file, tensors)

    write_folder(path, {_WEIGHTS: weights, _DESCRIPTION: describe})


def load_encoders(path: Path) -> list[Encoder]:
    """Read what `save_encoders` wrote.

    Raises:
        StorageError: A file is missing or damaged, or the encoders read another layout of tokens.
    """
    description = _read_description(Path(path) / _DESCRIPTION)
    weights = Path(path) / _WEIGHTS
    check_sha256(weights, description.sha256)
    tensors = load_tensors(weights)
    encoders = []
    for number in range(description.count):
        encoder = Encoder(
            description.features,
            hidden=description.hidden,
            layers=description.layers,
            generator=Generator(),
        )
        prefix = f"{number}."
        state = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        try:
            encoder.load_state_dict(state)
        except RuntimeError as error:
            raise StorageError(
                "the weights do not fit their description", where=str(weights)
            ) from error
        encoders.append(encoder)
    return encoders


def _read_description(path: Path) -> _Description:
    data = read_json(path)
    try:
        description = _Description(**data)
        numbers = [data[name] for name in ("count", "features", "hidden", "layers")]
        described = all(isinstance(number, int) and number > 0 for number in numbers)
    except TypeError as error:
        raise StorageError("the file describes no encoders", where=str(path)) from error
    if not described:
        raise StorageError("a size of the encoders is no number", where=str(path))
    found = (description.format, description.layout)
    if found != (_FORMAT, LAYOUT_VERSION):
        raise StorageError(
            f"format {found[0]} and token layout {found[1]} are not the ones read here, "
            f"{_FORMAT} and {LAYOUT_VERSION}",
            where=str(path),
            remedy="Learn the encoders anew: those of another token layout mean nothing.",
        )
    return description
