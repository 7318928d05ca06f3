"""From a laptop to a cluster: settings for Ray's launchers, and what checks and starts them."""
