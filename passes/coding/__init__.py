"""Lossless coding: how tensors and bytes are written in as few bytes as possible, bit for bit."""
