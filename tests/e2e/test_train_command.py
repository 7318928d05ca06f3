"""The train command as a user meets it: interrupted, killed and misused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ali_dist.config.loading import from_mapping, preset_names, setting_infos
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.errors import InputError
from ali_dist.train import choose_launcher, main
from tests.helpers.processes import ROOT, checkpoint_names, train_command
from tests.helpers.runs import assert_bitwise_equal, command_line_for, load_weights, tiny_config

LONG = {"run__images": 24 * 2000, "report__checkpoint_every": 24 * 20, "report__log_every": 24 * 1000}


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    ensure_prepared("digits", str(folder))
    return folder


def run_to_end(config, log: Path) -> str:
    with train_command(config, log) as running:
        assert running.wait() == 0, running.read_output()
        return running.read_output()


def test_a_killed_process_continues_and_ends_with_the_weights_of_an_unbroken_run(tmp_path, digits):
    budget = {"data__url": str(digits), "run__images": 24 * 150, "report__checkpoint_every": 24 * 20}
    unbroken, killed = (tiny_config(tmp_path, run__name=name, **budget) for name in ("unbroken", "killed"))
    run_to_end(unbroken, tmp_path / "unbroken.log")
    with train_command(killed, tmp_path / "killed.log") as running:
        running.wait_for(lambda: len(checkpoint_names(killed)) > 0)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
    assert "Continuing from the checkpoint" in run_to_end(killed, tmp_path / "again.log")
    for file in ("model", "ema", "optimizer"):
        assert_bitwise_equal(load_weights(unbroken, file), load_weights(killed, file))


@pytest.mark.distributed
def test_torchrun_ends_well_although_one_rank_evaluates_longer(tmp_path, digits):
    """A rank that leaves the group while rank 0 is at work may abort, and torchrun then ends rank 0, too."""
    config = tiny_config(tmp_path, data__url=str(digits), report__evaluation="auto")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "ali_dist.train",
            *command_line_for(config),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((Path(config.run.dir) / config.run.name / "summary.json").read_text())
    assert (summary["status"], summary["world_size"]) == ("finished", 2)
    assert summary["metrics"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_request_to_stop_saves_a_checkpoint_and_exits_with_75(tmp_path, digits, number):
    config = tiny_config(tmp_path, data__url=str(digits), **LONG)
    with train_command(config, tmp_path / "log") as running:
        running.wait_for(lambda: len(checkpoint_names(config)) > 0)
        running.send_signal(number)
        assert running.wait() == 75, running.read_output()
        output = running.read_output()
    assert "Traceback" not in output
    assert "run the same command to go on" in output
    summary = json.loads((Path(config.run.dir) / "tiny" / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert f"step-{summary['step']:09d}" in checkpoint_names(config)


def test_no_arguments_mean_the_digits(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert '"name": "digits"' in shown
    assert "penalised" in shown
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_setting_and_preset_and_needs_neither_torch_nor_ray():
    program = (
        "import sys\n"
        "for name in ('ray', 'torch', 'numpy'): sys.modules[name] = None\n"
        "from ali_dist.train import main\nsys.exit(main(['--help']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for key in setting_infos():
        assert f"--{key} (" in done.stdout
    for text in ("--preset", "--dry-run", *preset_names()):
        assert text in done.stdout


def test_ray_trains_where_workers_are_asked_for_or_a_cluster_is_at_hand(monkeypatch):
    """Under torchrun, whose processes have a RANK, this process trains even beside a cluster."""
    for name in ("RANK", "RAY_ADDRESS", "RAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)

    def launcher(workers: str) -> str:
        return choose_launcher(from_mapping({"scale.workers": workers})).__name__

    assert (launcher("0"), launcher("auto")) == ("run_local", "run_local")
    pytest.importorskip("ray", reason="Ray is not installed")
    assert (launcher("2"), launcher("1:4")) == ("run_on_ray", "run_on_ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert (launcher("0"), launcher("auto")) == ("run_local", "run_on_ray")
    monkeypatch.setenv("RANK", "0")
    assert launcher("auto") == "run_local"


def test_workers_without_ray_are_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ali_dist.launchers.ray_train", raising=False)
    with pytest.raises(InputError, match=r"scale.workers is '2', which needs Ray, .*: install ray"):
        choose_launcher(from_mapping({"scale.workers": "2"}))


def refusal_of(capsys, *words: str) -> str:
    """The one sentence with which a wrong command ends."""
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--preset", "digit"], ["digit", "did you mean digits"]),
        (["--optim.lr", "1"], ["optim.lr"]),
        (["--model.latent_size", "0"], ["model.latent_size", "0", "from 1 to"]),
        (["--data.global_batch_size", "4", "--data.lanes", "8"], ["4", "8", "data.lanes"]),
        (["--scale.precision", "fp15"], ["fp15", "fp16"]),
        (["--optim.beta2", "0.001"], ["0.001", "0.999"]),
        (["--run.seed"], ["run.seed", "needs a value"]),
        (["digits"], ["digits", "--section.key"]),
        (["--model.architecture", "cifar"], ["cifar", "cifar10"]),
        (["--preset", "nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
        (["--data.source", "none", "--data.url", "nowhere"], ["nowhere", "ali_dist.prepare"]),
    ],
)
def test_wrong_arguments_are_one_sentence_and_exit_code_2(words, names, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence = refusal_of(capsys, *words)
    for name in names:
        assert name in sentence
    assert not (tmp_path / "runs").exists()


def test_an_index_that_does_not_match_its_shards_is_refused(tmp_path, digits, capsys):
    shutil.copytree(digits, tmp_path / "data")
    shard = tmp_path / "data" / "train" / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    sentence = refusal_of(capsys, *command_line_for(tiny_config(tmp_path)))
    assert "00000.tar" in sentence


def test_more_workers_than_lanes_are_refused_before_ray_starts(tmp_path, digits, capsys):
    config = tiny_config(tmp_path, data__url=str(digits), scale__workers="7")
    sentence = refusal_of(capsys, *command_line_for(config))
    assert "6 lanes" in sentence


def test_a_run_folder_that_cannot_be_written_is_one_sentence(tmp_path, digits, capsys):
    (tmp_path / "runs").write_text("a file where the folder should be")
    code = main(command_line_for(tiny_config(tmp_path, data__url=str(digits))))
    message = capsys.readouterr().err
    assert code in (1, 2)
    assert "Traceback" not in message
    assert str(tmp_path / "runs") in message
