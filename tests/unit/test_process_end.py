"""The end of a command: its exit code, and what Python does at its own end."""

from __future__ import annotations

import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ali_dist.process_end import run_to_the_end

BEFORE = """
import atexit, os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from ali_dist.process_end import run_to_the_end

class Slow:  # to clear away
    def __del__(self, write=os.write):
        write(2, b"cleared")

slow = Slow()
atexit.register(print, "registered")
"""


def run_python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", BEFORE + code]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize(
    ("main", "code"),
    [
        ("lambda: 0", 0),
        ("lambda: 75", 75),
        ("lambda: sys.exit(2)", 2),
        ("lambda: sys.exit()", 0),
        ("lambda: sys.exit('a sentence')", 1),
        ("lambda: 1 / 0", 1),
    ],
)
def test_the_exit_code_is_that_of_the_command(main: str, code: int) -> None:
    ended = run_python(f"run_to_the_end({main})")
    assert ended.returncode == code
    assert ended.stdout == "registered\n"
    assert ("a sentence" in ended.stderr) == ("a sentence" in main)
    assert ("ZeroDivisionError" in ended.stderr) == ("1 / 0" in main)


def test_threads_end_what_is_written_is_flushed_and_memory_is_not_cleared() -> None:
    """Threads of a pool, which wait for work, do not keep it from ending."""
    began = time.monotonic()
    ended = run_python(
        "def main():\n"
        "    ThreadPoolExecutor(2).submit(time.sleep, 0)\n"
        "    threading.Thread(target=lambda: (time.sleep(0.3), print('thread'))).start()\n"
        "    print('main', end=' ')\n"
        "    return 0\n"
        "run_to_the_end(main)"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "main thread\nregistered\n", "")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("tool", ["sys.setprofile(lambda *a: None)", "sys.settrace(lambda *a: None)"])
def test_a_profiler_or_a_debugger_gets_pythons_own_end(tool: str) -> None:
    ended = run_python(f"{tool}\nrun_to_the_end(lambda: 3)")
    assert ended.returncode == 3
    assert "cleared" in ended.stderr


def test_a_command_that_a_program_runs_in_its_own_process_does_not_end_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ali", "no-command"])
    with pytest.raises(SystemExit) as ended:
        run_to_the_end(lambda: 3)
    assert ended.value.code == 3
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("ali_dist", run_name="__main__")
    assert ended.value.code == 2


@pytest.mark.parametrize("command", [["-m", "ali_dist"], ["-c", "from ali_dist.__main__ import run; run()"]])
def test_a_command_ends_at_once(command: list[str]) -> None:
    """As a module and as a script: nothing is cleared, so that the hook for that is not called."""
    hook = "import atexit, sys, ali_dist.process_end as e\ne.os._exit = lambda code: sys.stdout.write('at once')\n"
    code = f"{hook}sys.argv = ['ali', '--version']\n" + (
        "import runpy; runpy._run_module_as_main('ali_dist')" if command[0] == "-m" else command[1]
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout.endswith("at once"), ended.stderr


def test_a_profile_of_a_command_is_written(tmp_path: Path) -> None:
    file = tmp_path / "profile"
    command = [sys.executable, "-m", "cProfile", "-o", str(file), "-m", "ali_dist", "--version"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert file.stat().st_size > 0
