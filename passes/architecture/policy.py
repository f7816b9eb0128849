"""What a search space allows: which parts go, how widths are tied, which skips are added."""

from __future__ import annotations

from dataclasses import dataclass

from energy_model.errors import ArgumentError

PARTS = ("block", "unit", "node")
WIDTHS = ("free", "stage", "width")
SKIPS = ("gated", "plain", "none")
IMPORTANCES = ("norm", "leading")


@dataclass(frozen=True, slots=True)
class Policy:
    """The shape of a search space. The defaults are ours; `Policy.coarse()` is the paper's.

    Attributes:
        parts: What is removed as one: `"block"`, a residual branch; `"unit"`, a convolution or
            linear layer with the norm and the activation after it; `"node"`, a single norm or
            activation, and without `"unit"` a single convolution or linear layer, too.
        widths: Which channel groups have one width: `"free"`, none; `"stage"`, those of equal width
            and spatial size in the teacher; `"width"`, those of equal width in the teacher.
        skips: `"gated"`, `x_j + s x_i` with a learnable number `s` that starts at 0; `"plain"`,
            `x_j + x_i`; `"none"`.
        skip_anywhere: Skips start at and lead to every single operation, and not only units.
        keep_nonlinearity: Two weight layers that had an activation between them keep one.
        doubled: A residual sum whose branch is empty stays `x + x`, and does not become `x`.
        importance: Which units stay: `"norm"`, those of the largest weights; `"leading"`, the
            first.

    Raises:
        ArgumentError: A value is not one of these.
    """

    parts: tuple[str, ...] = ("block", "unit")
    widths: str = "free"
    skips: str = "gated"
    skip_anywhere: bool = False
    keep_nonlinearity: bool = True
    doubled: bool = False
    importance: str = "norm"

    def __post_init__(self) -> None:
        chosen = isinstance(self.parts, tuple) and set(self.parts) <= set(PARTS)
        if not chosen or len(set(self.parts)) != len(self.parts):
            raise _bad("parts", self.parts, PARTS)
        for field, known in (("widths", WIDTHS), ("skips", SKIPS), ("importance", IMPORTANCES)):
            if getattr(self, field) not in known:
                raise _bad(field, getattr(self, field), known)
        for field in ("skip_anywhere", "keep_nonlinearity", "doubled"):
            if not isinstance(getattr(self, field), bool):
                raise _bad(field, getattr(self, field), ("True", "False"))

    @classmethod
    def coarse(cls) -> Policy:
        """The space of the paper's section 3.2, with its widths tied by equal numbers."""
        return cls(("node",), "width", "plain", True, False, True, "leading")


def _bad(field: str, value: object, known: tuple[str, ...]) -> ArgumentError:
    return ArgumentError(
        f"{value!r} is not allowed",
        where=f"policy.{field}",
        remedy=f"Choose of {', '.join(known)}.",
    )
