"""Quantization: grids, encodings of weights, and quantizers of activations."""
