"""What is done to a graph: tracing, analysis, rewrites, methods. Only here is `torch.fx` used."""

from energy_model._house import require_own_rooms

require_own_rooms()
