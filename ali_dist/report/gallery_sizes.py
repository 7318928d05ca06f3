"""How many pictures a gallery shows. Importing this module imports nothing, so that --help can name them at once."""

SAMPLES = 100
RECONSTRUCTIONS = 50
ROWS = 8
"""Interpolations of a gallery, and latents whose condition is changed."""
STEPS = 11
"""Decoded points of each interpolation, as in the paper's figure 6."""
