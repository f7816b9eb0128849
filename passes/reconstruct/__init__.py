"""Compression after training, with inputs alone: layers are refitted in closed form."""
