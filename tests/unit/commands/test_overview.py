"""python -m ali_dist: what there is, and the way to it."""

import importlib.util
import subprocess
import sys

import pytest

import ali_dist
from ali_dist import __main__ as overview
from ali_dist.completion import entry_of


def test_every_command_is_listed_on_one_line_and_exists(capsys):
    assert overview.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for module, purpose in overview.COMMANDS.values():
        assert importlib.util.find_spec(module) is not None
        assert [line for line in lines if f"python -m {module} " in line and line.endswith(purpose)]
    assert max(map(len, lines)) <= 120
    assert overview.main(["--help"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_the_version_is_the_package_s_and_nothing_heavy_is_loaded():
    code = (
        "import sys\nfrom ali_dist.__main__ import main\n"
        "main(['--version'])\nprint(sorted({'torch', 'numpy', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"ali_dist {ali_dist.__version__}", "[]"]


def test_no_help_waits_for_torch_or_ray():
    """Loading torch takes seconds; a help that takes as long is not looked at a second time."""
    code = (
        "import contextlib, importlib, io, sys\n"
        "for module in sys.argv[1:]:\n"
        " with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):\n"
        "  importlib.import_module(module).main(['--help'])\n"
        " heavy = sorted({'torch', 'ray', 'sklearn', 'matplotlib', 'boto3', 'pyarrow'} & set(sys.modules))\n"
        " print(module, len(shown.getvalue()) > 300, heavy)\n"
    )
    modules = [entry_of(module) for module, _ in overview.COMMANDS.values()]
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"{module} True []" for module in modules], done.stderr


@pytest.mark.parametrize("name", [name for name in overview.COMMANDS if name != "cluster"])
def test_a_command_runs_by_its_short_name(name, capsys):
    with pytest.raises(SystemExit) as ended:
        overview.main([name, "--help"])
    assert ended.value.code == 0
    assert overview.COMMANDS[name][0] in capsys.readouterr().out


def test_a_misspelt_command_is_named_with_the_nearest(capsys):
    assert overview.main(["trian"]) == 2
    assert "did you mean train" in capsys.readouterr().err
