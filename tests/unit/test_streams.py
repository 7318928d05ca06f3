"""No command ends in a traceback because its output goes nowhere, or to a terminal that lacks characters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ali_dist.__main__ import COMMANDS
from tests.helpers.processes import ROOT
from tests.helpers.runs import TINY_SETTINGS

MODULES = ("ali_dist", *(module for module, _ in COMMANDS.values()))
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def in_shell(line: str, **env: str) -> subprocess.CompletedProcess:
    """Run a line in bash; $PYTHON is this Python."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(["bash", "-c", line], env=environment, capture_output=True, check=False, timeout=60)


def run_program(text: str, redirection: str = "", **env: str) -> subprocess.CompletedProcess:
    """Run a function `act` of a program as a command."""
    program = f"import sys\nfrom ali_dist.errors import exit_code\n{text}\nsys.exit(exit_code('some.command', act))"
    return in_shell(f'"$PYTHON" -c "$PROGRAM" {redirection}', PROGRAM=program, **env)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("redirection", ["| true", ">&- 2>&-"])
def test_help_that_nobody_reads_ends_in_silence(module, redirection):
    done = in_shell(f'set -o pipefail; "$PYTHON" -m {module} --help {redirection}')
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&1 | true", ">&- 2>&- <&-"])
def test_a_refusal_that_nobody_reads_keeps_its_exit_code(redirection):
    done = in_shell(f'set -o pipefail; "$PYTHON" -m ali_dist.train --nonsense {redirection}')
    assert (done.returncode, done.stdout + done.stderr) == (2, b"")


PRINTS = "def act():\n for n in range(9999): print('x' * 99)\n sys.stderr.write('done\\n')\n"


def test_the_work_goes_on_when_the_reader_has_gone():
    done = run_program(PRINTS, "| head -1")
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b"done\n"


def test_a_full_disk_is_said_once():
    done = run_program("def act(): print('a result')\n", ">/dev/full")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"No space left on device; free some space" in done.stderr


def test_a_file_that_is_opened_never_takes_the_place_of_a_closed_stream(tmp_path):
    """Else what libraries write to descriptor 2 would end up in a checkpoint."""
    program = f"import os\ndef act():\n file = open({str(tmp_path / 'file')!r}, 'w')\n os.write(2, b'a warning')\n"
    assert run_program(program, ">&- 2>&- <&-").returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_a_terminal_of_the_c_locale_gets_escapes_and_the_bytes_of_names():
    done = run_program("def act(): print('gr\\xfcn \\u2605', 'a\\udcc3\\udcbc')\n", **C_LOCALE)
    assert (done.returncode, done.stdout) == (0, rb"gr\xfcn \u2605 a" + "ü\n".encode())


@pytest.mark.parametrize("key", ["run.name", "run.dir"])
def test_a_name_that_is_no_text_in_the_locale_is_refused_in_one_sentence(tmp_path: Path, key: str):
    done = in_shell(f'cd "{tmp_path}" && "$PYTHON" -m ali_dist.train --{key} grün --dry-run', **C_LOCALE)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert f"{key} is 'gr".encode() in done.stderr
    assert b"LC_ALL" in done.stderr


def test_a_run_in_a_folder_that_is_no_text_in_the_locale_is_trained_and_evaluated(tmp_path: Path):
    (tmp_path / "größe").mkdir()
    words = " ".join(f"--{key}={value}" for key, value in TINY_SETTINGS.items())
    line = f'"$PYTHON" -m ali_dist.train {words} --run.name=x --run.images=24 && "$PYTHON" -m ali_dist.generate x'
    done = in_shell(f'cd "{tmp_path}/größe" && {line}', **C_LOCALE)
    assert done.returncode == 0, done.stderr
    assert b"failed" not in done.stderr
    assert "größe".encode() in done.stdout, "the path as the file system has it"
    assert list((tmp_path / "größe" / "runs" / "x" / "tensorboard").iterdir())
