"""Saving a traced graph as JSON and tensors: no pickle, and nothing from the file is executed."""
