"""Numbers of evaluations that --help names. Importing this module imports nothing."""

LEAST_SAMPLES = 2
"""Fewest samples of a split, and of the decoder, that the metrics are defined for."""
SVM_LABELS = 1000
"""Labels in a draw of the paper's SVM protocol."""
SVM_DRAWS = 100
"""Draws of labels of that protocol."""
