"""Which recipe learns colour pictures: variants of one, trained in a queue and compared in a table.

The command is `python -m tests.bench.recipes`; `__main__.py` describes it.
"""
