"""Rewrites that keep the function, or change it as a method asks."""
