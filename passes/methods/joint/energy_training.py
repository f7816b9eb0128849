"""Training by alternation under a limit on energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from energy_model.unit_prices import PARTS
from passes.methods.joint.alternation import Alternation
from passes.methods.joint.energy_rate import charged


@dataclass
class EnergyAlternation(Alternation):
    """The alternation with a ladder in units of energy; sites are charged for their bits."""

    def fit(self) -> None:
        """Fit the codebooks, and charge the layers for their bits."""
        super().fit()
        self._charge()

    def report(self) -> dict[str, Any]:
        """What the history tells; energies in units of the hardware."""
        told = super().report()
        told["allowed_energy"] = told.pop("allowed_bits") / PARTS
        return told

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        self._charge()

    def _charge(self) -> None:
        rows = zip(self.targets.rows, self.bits, strict=True)
        bits = {target.name: b for target, b in rows if target.quantized}
        self.graph.sites = tuple(
            charged(site, bits[site.name]) if site.name in bits else site
            for site in self.graph.sites
        )
