"""Where data come from: built-in ones, and published ones in their original files. `registry.py` lists them."""
