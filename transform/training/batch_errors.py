"""What a model or a loss raises on a batch, as an error that names the arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from energy_model.errors import CompressionError, TrainingError


@contextmanager
def batch_errors(size: int | None) -> Iterator[None]:
    """Name the arguments when the model or the loss fails on a batch of so many samples."""
    try:
        yield
    except CompressionError:
        raise
    except Exception as error:
        # torch has no error class for it, only these words.
        if "more than 1 value per channel" in str(error):
            raise TrainingError(
                f"a batch has size {size}, and BatchNorm needs more than one value per channel",
                where="data",
                remedy="Leave out a smaller last batch (DataLoader(..., drop_last=True)), or "
                "choose another batch size.",
            ) from error
        raise TrainingError(
            f"the model or the loss fails on a batch: {type(error).__name__}: {error}",
            where="data",
            remedy="Its batches must be such as the model takes, with targets for the loss.",
        ) from error
