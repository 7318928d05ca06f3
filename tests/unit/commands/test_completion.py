"""`ali completion` writes scripts that offer what the parsers take, and execute nothing that they are given."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from ali_dist import __main__ as overview
from ali_dist.cli import CommandParser
from ali_dist.completion import SHELLS, list_completions, write_script
from ali_dist.config.loading import preset_names, setting_infos
from ali_dist.config.settings_help import section_titles
from ali_dist.data.sources.registry import SOURCES

MODULES = {name: module for name, (module, _) in overview.COMMANDS.items()}
CASES = {
    "ali t": ["train"],
    "ali help ": list(MODULES),
    "ali completion ": list(SHELLS),
    "ali train --preset ": preset_names(),
    "ali train --preset mixture-p": ["mixture-paper", "mixture-posthoc"],
    "ali train --run.": [f"--{key}" for key in setting_infos() if key.startswith("run.")],
    "ali train --objective.loss ": ["nonsaturating", "minimax", "relativistic", "hinge"],
    "ali train --model.output_bias_from_data ": ["true", "false"],
    "ali train --data.source shapes": ["shapes", "shapes-attributes"],
    "ali train --data.url ": [],  # the shell's own completion of files
    "ali train --optim.lr_d ": [],
    "ali train --help ": list(section_titles()),
    "ali sweep --preset digits --search ": ["random", "optuna", "grid"],
    "ali prepare cif": [name for name in SOURCES if name.startswith("cif")],
    "ali evaluate demo --what ": ["metrics", "svm", "knn", "anomaly", "fid"],
    "ali export demo out --format ": ["safetensors", "torch", "onnx"],
    "ali cluster s": ["submit", "status", "stop"],
    "ali nonsense --": [],
}


@pytest.fixture(scope="module")
def script() -> str:
    return write_script("bash", MODULES)


def test_bash_offers_what_can_stand_there(script):
    program = script + "\n".join(
        [
            "",
            'offer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ali; echo "${COMPREPLY[*]}"; }',
            *("offer " + " ".join(f"'{word}'" for word in line.split(" ")) for line in CASES),
        ]
    )
    done = subprocess.run(["bash", "-u", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    offered = dict(zip(CASES, done.stdout.splitlines(), strict=True))
    assert {line: words.split() for line, words in offered.items()} == CASES


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_its_script():
    done = subprocess.run(
        ["zsh", "-f", "-c", write_script("zsh", MODULES)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_both_shells_get_the_same_function(script):
    first, _, rest = write_script("zsh", MODULES).partition("\n")
    assert "bashcompinit" in first
    assert rest == script


def test_words_that_a_shell_would_execute_are_left_out():
    parser = CommandParser("x", "x")
    parser.add_argument("--what", choices=("fine", "$(touch /tmp/x)", "`id`", "a;b", "two words"))
    assert list_completions(parser).values["--what"][1] == "$(touch /tmp/x)"
    from ali_dist import completion

    assert completion._join(list_completions(parser).values["--what"]) == "fine"


def test_the_command_prints_it_and_refuses_other_shells(capsys, script):
    assert overview.main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == script
    assert overview.main(["completion", "fish"]) == 2
    assert "shells: bash, zsh" in capsys.readouterr().err
    assert overview.main(["completion", "--help"]) == 0
    assert "ali completion zsh" in capsys.readouterr().out
    assert overview.main(["completion"]) == 2
