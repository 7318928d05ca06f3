"""From a laptop onto a cluster: `python -m cluster --help`. Knows Ray's commands; ali_dist knows nothing of it."""
