"""Sparsity and bit widths under one size budget: the exact inner problems."""
