"""What commands let a user choose: galleries, features and formats. Importing this module imports no torch."""

from __future__ import annotations

from typing import Literal

from ali_dist.report.gallery_sizes import RECONSTRUCTIONS, ROWS, SAMPLES, STEPS

DEFAULT_COUNTS = {
    "samples": SAMPLES,
    "reconstructions": RECONSTRUCTIONS,
    "interpolations": ROWS,
    "attributes": ROWS,
}
"""The galleries that can be written, and their default numbers of samples, pairs or rows."""
DEFAULT_STEPS = STEPS
"""Decoded images of an interpolation."""
FEATURES = {
    "mu": "the encoder's mean (one draw of z with --sample)",
    "mu+sigma": "mean and standard deviation",
    "mu+hidden": "mean and the encoder's last hidden layer",
    "mu+layers": "mean and what the activations of its last three hidden layers are given (the paper's SVM features)",
    "joint": "the discriminator's last hidden layer, of (x, z)",
}
"""Features that an encoder gives, and what each is."""
GraphFormat = Literal["torch", "onnx"]
GRAPH_SUFFIXES: dict[GraphFormat, str] = {"torch": ".pt2", "onnx": ".onnx"}
"""Ends of the files' names of each format of graphs."""
