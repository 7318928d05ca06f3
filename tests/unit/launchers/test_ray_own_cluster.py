"""The cluster that a run starts for itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.ray
def test_it_has_the_processes_that_training_needs_and_leaves_ray_as_it_was() -> None:
    """Nothing is there that serves clusters that outlive a run; another `ray.init` starts all again."""
    code = """if True:
        import json
        import logging
        import os
        from pathlib import Path

        import ray
        from ray._private import auto_init_hook, node, services, utils

        from ali_dist.launchers.ray_own_cluster import start_own_cluster, without_successor
        from tests.helpers.processes import descendants_of

        def places():
            functions = (node.Node.start_api_server, node.Node.start_monitor, node.Node.start_log_monitor)
            return (*functions, utils.get_dashboard_dependency_error, services.start_ray_process)

        before = places()
        start_own_cluster(1, 1, logging_level=logging.ERROR)
        lines = [Path(f"/proc/{pid}/cmdline").read_text().split("\\0") for pid in descendants_of(os.getpid())]
        scripts = sorted({word.rpartition("/")[2] for line in lines for word in line if word.endswith(".py")})
        log = Path(ray._private.worker._global_node.get_session_dir_path(), "logs/dashboard_agent.log").read_text()
        answer = ray.get(ray.remote(lambda: 6 * 7).remote())
        kept = places() == before
        with without_successor():
            ray.shutdown()
            try:
                ray.get([])
            except Exception:
                pass
            successor = ray.is_initialized()
        print(json.dumps([scripts, log, answer, kept, successor, auto_init_hook.enable_auto_connect]))
    """
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert completed.returncode == 0, completed.stderr
    scripts, agent_log, answer, kept, successor, is_restored = json.loads(completed.stdout.splitlines()[-1])
    assert not {"dashboard.py", "monitor.py"} & set(scripts)
    assert "log_monitor.py" in scripts
    assert "Loaded 0 modules" in agent_log
    assert (answer, kept, successor, is_restored) == (42, True, False, True)
