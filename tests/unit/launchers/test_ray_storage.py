"""Where Ray and its workers find what lies on this machine or in S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from ali_dist.config.loading import from_mapping
from ali_dist.errors import InputError
from ali_dist.launchers.ray_storage import check_results_stay, open_ray_storage, with_absolute_paths
from ali_dist.train import main as train
from tuning.sweep import main as sweep


def test_processes_in_other_folders_get_absolute_paths_and_the_same_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = with_absolute_paths(from_mapping({"run.dir": "runs", "data.url": "s3://bucket/digits"}))
    assert config.run.dir == str(tmp_path / "runs")
    assert config.data.url == "s3://bucket/digits"


def test_the_cache_lies_at_one_path_on_all_machines_or_in_the_home_of_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, expected in [("cache", str(tmp_path / "cache")), ("/fast/cache", "/fast/cache"), ("~/cache", "~/cache")]:
        assert with_absolute_paths(from_mapping({"data.cache_dir": given})).data.cache_dir == expected
    assert with_absolute_paths(from_mapping({})).data.cache_dir is None


@pytest.mark.parametrize("command", [train, sweep], ids=["train", "sweep"])
def test_a_job_whose_results_ray_would_delete_is_refused_with_the_remedy(command, tmp_path, monkeypatch, capsys):
    job = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1f"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    for words in ([], ["--run.dir", "some/runs"]):
        assert command(words) == 2
        sentence = capsys.readouterr().err
        assert "that Ray deletes" in sentence
        assert "--run.dir s3://bucket/prefix" in sentence
        assert sentence.count("\n") == 1
    assert list(job.iterdir()) == []
    for place in ("s3://bucket/runs", "/shared/runs", "~/runs"):
        check_results_stay(from_mapping({"run.dir": place}))
    monkeypatch.chdir(tmp_path)
    check_results_stay(from_mapping({"run.dir": "runs"}))


def test_the_home_is_a_folder_of_its_own_wherever_the_current_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert with_absolute_paths(from_mapping({"run.dir": "~/runs"})).run.dir == "/home/somebody/runs"


def test_rays_own_files_lie_in_the_run_folder(tmp_path):
    config = from_mapping({"run.dir": f"{tmp_path}/runs/", "run.name": "mine"})
    assert open_ray_storage(config) == (str(Path(tmp_path) / "runs" / "mine" / "ray"), None)
    path, filesystem = open_ray_storage(from_mapping({"run.dir": "s3://bucket/runs", "run.name": "mine"}))
    assert path == "bucket/runs/mine/ray"
    assert type(filesystem).__name__ == "S3FileSystem"


def test_a_place_that_ray_does_not_know_is_one_sentence():
    with pytest.raises(InputError, match=r"run.dir is 'gs://bucket', but on Ray it must be a folder or s3://"):
        open_ray_storage(from_mapping({"run.dir": "gs://bucket"}))
