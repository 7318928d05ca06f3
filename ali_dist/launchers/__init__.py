"""Launchers: where the processes of a run come from, and what the loop learns of its surroundings.

`local` trains in this process, alone or as one of torchrun's; `ray_train` trains on Ray workers. A launcher is a module
with a context (see `ali_dist.training.context`) and a function from the config to the summary of the run, which
`ali_dist.train.choose_launcher` chooses; the loop does not change. `resources` is the only arithmetic of what fits
where.
"""
