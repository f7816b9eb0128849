"""Dynamic sparse training: which cells of a sparse tensor are dropped, and where others grow.

Pure parts of the rewiring engine; they change no weight, no mask and no optimizer.
"""
