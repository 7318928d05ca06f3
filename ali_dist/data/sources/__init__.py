"""Where data come from: built-in sources, and published data sets in their original files. `registry.py` lists them."""
