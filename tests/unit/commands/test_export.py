"""export: the folder gives what the run gives, opens without it, says what it is, and names no place of here."""

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import ali_dist
from ali_dist import export, generate
from ali_dist.errors import InputError
from ali_dist.inference.graphs import READERS
from ali_dist.model import data_space
from tests.helpers.processes import ROOT
from tests.helpers.trained import CLASSES, SIDE, run_folder
from tests.unit.commands.conftest import refusal, succeed

PARITY = 1e-4
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
FORMATS = ["torch", pytest.param("onnx", marks=pytest.mark.skipif(not HAS_ONNX, reason="the extra onnx is missing"))]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)


def test_an_exported_model_gives_what_the_run_gives(plain, tmp_path, capsys):
    succeed(export, plain, tmp_path / "out")
    files = {Path(line).name for line in capsys.readouterr().out.splitlines()}
    assert files == {"README.md", "config.json", "preprocessor_config.json", "model.safetensors"}
    assert files == {path.name for path in (tmp_path / "out").iterdir()}
    run, exported = ali_dist.load(plain, device="cpu"), ali_dist.load(tmp_path / "out", device="cpu")
    x = images(5)
    assert np.abs(exported.encode(x) - run.encode(x)).max() <= PARITY
    assert np.array_equal(exported.sample(5, seed=1), run.sample(5, seed=1))
    assert repr(exported) == repr(run)
    assert not any(name.startswith("discriminator") for name in load_file(tmp_path / "out" / "model.safetensors"))
    for needs_discriminator in (lambda: exported.score(x), lambda: exported.encode(x, features="joint")):
        with pytest.raises(InputError, match="--discriminator"):
            needs_discriminator()
    with pytest.raises(InputError, match="exported with ema"):
        ali_dist.load(tmp_path / "out", weights="raw")


def test_the_discriminator_goes_along_where_it_is_asked_for(plain, tmp_path):
    succeed(export, plain, tmp_path / "out", "--discriminator", "--weights", "raw")
    run, exported = ali_dist.load(plain, weights="raw", device="cpu"), ali_dist.load(tmp_path / "out", device="cpu")
    assert np.abs(exported.score(images(3)) - run.score(images(3))).max() <= PARITY


def test_a_conditional_model_is_found_by_its_name_and_takes_its_conditions(by_class, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    succeed(export, by_class, "runs/mine")
    run, exported = ali_dist.load(by_class, device="cpu"), ali_dist.load("mine", device="cpu")
    assert exported.classes == CLASSES
    assert np.array_equal(exported.sample(4, "two"), run.sample(4, "two"))


@pytest.mark.parametrize("graph_format", FORMATS)
@pytest.mark.parametrize("name", ["plain", "by_class"])
def test_graphs_give_what_the_run_gives_for_any_number_of_samples(graph_format, name, request, tmp_path):
    run = ali_dist.load(request.getfixturevalue(name), device="cpu")
    succeed(export, request.getfixturevalue(name), tmp_path, "--format", graph_format)
    suffix = {"torch": "pt2", "onnx": "onnx"}[graph_format]
    encoder, decoder = (READERS[graph_format](tmp_path / f"{part}.{suffix}") for part in ("encoder", "decoder"))
    for count in (1, 2, 7):
        x = torch.from_numpy(images(count))[:, None] / 255
        condition = "one" if name == "by_class" else None
        given = [torch.eye(4)[[1] * count]] if name == "by_class" else []
        mu, log_sigma = encoder([x, *given])
        expected = run.tensors.encode(x, condition, features="mu+sigma")
        assert (torch.cat([mu, log_sigma.exp()], dim=1) - expected).abs().max() <= PARITY
        assert (decoder([mu, *given])[0] - run.tensors.decode(mu, condition)).abs().max() <= PARITY


def test_a_process_that_has_decoded_nothing_yet_can_record_graphs(plain, tmp_path):
    """The map back to the data's size is computed once for a process, and was once kept as the recorder saw it."""
    data_space._inverse_enlargement.cache_clear()
    succeed(export, plain, tmp_path, "--format", "torch")
    assert ali_dist.load(plain, device="cpu").sample(2).std() > 0


def test_loading_the_graphs_of_torch_unpickles_nothing_of_ours(plain, tmp_path, monkeypatch):
    """Weights and constants are raw bytes with a JSON file that says so; the example inputs are plain tensors."""
    succeed(export, plain, tmp_path, "--format", "torch")
    with zipfile.ZipFile(tmp_path / "decoder.pt2") as file:
        notes = [name for name in file.namelist() if name.endswith(("weights_config.json", "constants_config.json"))]
        assert len(notes) == 2
        for note in notes:
            assert '"use_pickle": true' not in file.read(note).decode().replace("True", "true")
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: load(file, **(options | {"weights_only": True})))
    assert torch.export.load(tmp_path / "decoder.pt2").module()(torch.zeros(2, 4))[0].shape == (2, 1, SIDE, SIDE)


def test_points_are_exported_too(tmp_path):
    from ali_dist.launchers.local import run_local
    from tests.helpers.runs import tiny_config

    config = tiny_config(tmp_path, "mixture", data__url=str(tmp_path / "grid"), model__encoder="gaussian")
    run_local(config)
    succeed(export, run_folder(config), tmp_path / "out", "--format", "torch")
    z = np.ones((2, 4), dtype=np.float32)
    run, exported = (ali_dist.load(path, device="cpu") for path in (run_folder(config), tmp_path / "out"))
    assert np.abs(exported.decode(z) - run.decode(z)).max() <= PARITY


def test_the_card_has_a_metric_and_what_it_is_held_against_in_one_row(plain, tmp_path):
    measured = tmp_path / "measured"
    shutil.copytree(plain, measured)
    metrics = {"frechet": 20.5, "frechet_reference": 8.25, "mine": 3.0}
    run = ali_dist.load(plain, device="cpu").run
    summary = {"images": run.metadata.images_seen, "weights": run.weights, "metrics": metrics}
    (measured / "summary.json").write_text(json.dumps(summary))
    succeed(export, measured, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| Fréchet distance (`frechet`) | 20.5 | 8.25 (real holdout images) |" in card
    assert "| mine | 3 |  |" in card
    assert "frechet_reference" not in card


def test_the_card_says_what_the_model_is(plain, tmp_path):
    succeed(export, plain, tmp_path, "--license", "cc-by-4.0", "--format", "torch")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["library_name"]) == ("cc-by-4.0", "ali_dist")
    run = ali_dist.load(plain, device="cpu").run
    assert run.metadata.fingerprint in card
    for heading in ("The data", "Metrics", "Use", "Intended use", "Limits", "License"):
        assert f"\n## {heading}\n" in card
    assert "encoder.pt2" in card
    preprocessing = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert preprocessing["size"] == {"height": SIDE, "width": SIDE}
    assert preprocessing["network_size"] == 16
    succeed(export, plain, tmp_path)
    assert "Not chosen yet" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_nothing_exported_names_a_place_of_this_machine(plain, folder, tmp_path):
    succeed(export, plain, tmp_path)
    for path in tmp_path.iterdir():
        assert str(folder).encode() not in path.read_bytes(), path.name
    config = json.loads((tmp_path / "config.json").read_text())
    assert "storage" not in config["settings"]
    assert not {"starts", "spent"} & config["training"].keys(), "hosts and commands"


@pytest.mark.parametrize("graph_format", FORMATS)
def test_graphs_name_no_folder_of_the_code_that_wrote_them(plain, folder, graph_format, tmp_path):
    """PyTorch keeps with each operation the lines of code that called for it, and would write them with the graph."""
    succeed(export, plain, tmp_path, "--format", graph_format)
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for path in tmp_path.glob("*.pt2"):
        with zipfile.ZipFile(path) as file:
            contents |= {f"{path.name}: {name}": file.read(name) for name in file.namelist()}
    for place in (ROOT, Path(torch.__file__).parent, folder):
        assert not [name for name, content in contents.items() if str(place).encode() in content]


def test_an_older_export_is_replaced_with_its_graphs_and_nothing_else_is_touched(plain, tmp_path, capsys):
    succeed(export, plain, tmp_path / "out", "--format", "torch")
    succeed(export, plain, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.pt2"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    assert "something else" in refusal(capsys, export, plain, mine)
    assert "folder on a disk" in refusal(capsys, export, plain, "s3://bucket/model")
    assert "missing" in refusal(capsys, export, plain)


def test_what_cannot_be_exported_is_said_before_anything_is_written(plain, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ali_dist.inference.graphs._ONNX_PACKAGES", ("no_such_package",))
    message = refusal(capsys, export, plain, tmp_path / "out", "--format", "onnx")
    assert "no_such_package" in message
    assert "ali-dist[onnx]" in message
    assert not list(tmp_path.iterdir())


def test_graphs_that_differ_from_the_run_are_not_left_behind(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ali_dist.inference.graphs.MOST_DIFFERENCE", -1.0)
    assert export.main([plain, str(tmp_path / "out"), "--format", "torch"]) == 1
    assert "differ by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["5", "[1]", "[" * 100_000, "MISFIT"])
def test_a_damaged_summary_costs_the_card_its_metrics_alone(plain, tmp_path, capsys, content):
    run = tmp_path / "run"
    shutil.copytree(plain, run)
    summary = json.loads((run / "summary.json").read_text()) if content == "MISFIT" else {}
    misfit = json.dumps({**summary, "metrics": {"frechet": [1]}})
    (run / "summary.json").write_text(misfit if summary else content)
    succeed(export, str(run), tmp_path / "out")
    assert "summary.json" in capsys.readouterr().err
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_damaged_export_is_one_sentence(plain, tmp_path):
    succeed(export, plain, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in (
        {"format_version": 9},
        {"weights": 7},
        {"data": {}},
        {"data": {**config["data"], "shape": "large"}},
        {"data": {**config["data"], "shape": [1, None]}},
        {"settings": {**config["settings"], "model": {"latent_size": 9}}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError):
            ali_dist.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged"):
        ali_dist.load(tmp_path)


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(plain, tmp_path):
    """torch's own writer of archives aborts there, which is why it is asked in a process of its own."""
    code = (
        "import sys, pathlib, torch; from ali_dist.inference import graphs, load\n"
        "run = load.load_run(sys.argv[1]); graph = graphs.DecoderGraph(run).eval()\n"
        "z = torch.zeros(3, run.model.latent_size)\n"
        "try: graphs._write_torch(pathlib.Path('/dev/full'), graph, [z])\n"
        "except OSError as error: print(error.strerror)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(plain)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "No space left on device\n"), done.stderr[-500:]


def test_every_file_may_be_read_by_whom_the_folder_lets(plain, tmp_path):
    succeed(export, plain, tmp_path / "out")
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


def test_an_export_in_place_of_a_run_is_said(plain, tmp_path, capsys):
    succeed(export, plain, tmp_path / "out")
    sentence = refusal(capsys, generate, tmp_path / "out")
    assert "is an exported model, not a run" in sentence
    with pytest.raises(InputError, match="is an exported model, not a run"):
        ali_dist.load(tmp_path / "out", checkpoint=5)
