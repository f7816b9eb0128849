"""Experiments as data: recipes, their cells, and running them."""
