"""How a graph leaves: ONNX, checked against torch. Only here is `onnx` used."""

from energy_model._house import require_own_rooms

require_own_rooms()
