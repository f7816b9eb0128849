"""Training under a budget: the loop, its configuration, its checkpoints."""
