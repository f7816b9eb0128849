"""From a model to a graph and its sites."""
