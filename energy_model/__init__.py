"""What a layer costs: arithmetic over shapes, counts and bits.

No torch, no graph, no file: the lowest floor, which every other floor may use.
"""

from energy_model.budget import Budget, Limit
from energy_model.cost import Cost, CostTable
from energy_model.energy import Energy, layer_energy
from energy_model.hardware import Hardware, hardware_profiles, load_hardware
from energy_model.price import WeightPrice, weight_price
from energy_model.shapes import LayerShape

__all__ = [
    "Budget",
    "Cost",
    "CostTable",
    "Energy",
    "Hardware",
    "LayerShape",
    "Limit",
    "WeightPrice",
    "hardware_profiles",
    "layer_energy",
    "load_hardware",
    "weight_price",
]
