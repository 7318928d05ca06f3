"""The launcher, which brings a training from a laptop onto a cluster: `python -m cluster --help`.

It drives Ray's own commands and job server. `ali_dist` and `tuning` know nothing of it.
"""
