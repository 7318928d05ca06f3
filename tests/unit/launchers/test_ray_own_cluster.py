"""The cluster that a run starts for itself, and the notes that its processes leave each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run_python(code: str) -> Any:
    """What a process of its own writes as JSON in its last line; ours would keep what Ray has loaded."""
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout.splitlines()[-1])


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
            others = (services.start_ray_process, services.find_gcs_addresses)
            return (*functions, *others, utils.get_dashboard_dependency_error)

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
    scripts, agent_log, answer, kept, successor, is_restored = run_python(code)
    assert not {"dashboard.py", "monitor.py"} & set(scripts)
    assert "log_monitor.py" in scripts
    assert "Loaded 0 modules" in agent_log
    assert (answer, kept, successor, is_restored) == (42, True, False, True)


@pytest.mark.ray
def test_notes_reach_all_processes_of_a_cluster_and_the_first_refusal_counts() -> None:
    code = """if True:
        import json
        import logging
        import time

        import ray

        from ali_dist.launchers.ray_notes import Notes, NotesWatch, watch_for_stop
        from ali_dist.launchers.ray_own_cluster import start_own_cluster

        start_own_cluster(1, 1, logging_level=logging.ERROR)
        notes, others = Notes(), Notes()
        watch = NotesWatch(notes)
        watch.start()

        @ray.remote
        def work(notes):
            notes.tell_begin()
            notes.refuse("input", "the first")
            notes.refuse("training", "the second")
            stop_event = watch_for_stop(notes)
            notes.request_stop()
            return stop_event.wait(20)

        before = [notes.has_begun(), notes.is_stop_requested(), notes.read_refusal()]
        was_stopped = ray.get(work.remote(notes))
        end = time.monotonic() + 20
        while watch.refusal is None and time.monotonic() < end:
            time.sleep(0.05)
        after = [notes.has_begun(), notes.is_stop_requested(), watch.has_begun, watch.refusal]
        elsewhere = [others.has_begun(), others.is_stop_requested(), others.read_refusal()]
        notes.discard()
        at_last = [notes.has_begun(), notes.is_stop_requested(), notes.read_refusal()]
        print(json.dumps([before, was_stopped, after, elsewhere, at_last]))
    """
    before, was_stopped, after, elsewhere, at_last = run_python(code)
    nothing = [False, False, None]
    assert (before, elsewhere, at_last) == (nothing, nothing, nothing)
    assert (was_stopped, after) == (True, [True, True, True, ["input", "the first"]])
