"""The launcher's command line, and what it does with SSH's errors, tokens and keys; no SSH, no Ray cluster.

Run: `make test ARGS=tests/unit/cluster/test_launcher.py`
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from unittest.mock import Mock

import pytest

from ali_dist.errors import InputError
from cluster import jobs, ray_cli, ssh
from cluster.__main__ import Request, main, parse_request
from cluster.cluster_file import ClusterFile
from cluster.commands import describe_use
from cluster.entry import ACCESS_PREFIX, unpack_access
from cluster.jobs import collect_variables

# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["go"], "no command 'go'"),
        (["--", "go"], "no command ''"),
        (["up"], "up takes FILE.yaml"),
        (["stop", "mine.yaml"], "stop takes FILE.yaml JOB"),
        (["submit", "mine.yaml"], "submit needs the command after --"),
        (["up", "mine.yaml", "--fast"], "no option --fast"),
        (["up", "http://127.0.0.1:8265"], "takes the YAML file"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert sentence in message


def test_submit_takes_its_options_in_any_order_and_leaves_those_of_the_job_alone() -> None:
    words = ["submit", "--env", "A", "mine.yaml", "--follow", "--env", "B=1", "--", "python", "--env", "C", "--", "x"]
    assert parse_request(words) == Request(
        command="submit",
        target="mine.yaml",
        job="",
        follow=True,
        variables=("A", "B=1"),
        entrypoint=("python", "--env", "C", "--", "x"),
    )


def test_a_cluster_that_is_up_says_how_jobs_get_there(tmp_path: Path) -> None:
    """Both commands can be run as they stand; Ray's own one ends in a traceback without these variables."""
    file = tmp_path / "my cluster.yaml"
    said = describe_use(ClusterFile(file, "local", "10.0.0.1", (), "me", None))
    submit, tunnel = re.findall(r"python -m cluster ((?:submit|tunnel) .*?)(?:`|\n)", said)
    request = parse_request(shlex.split(submit))
    assert (request.target, request.follow, request.entrypoint[:3]) == (
        str(file),
        True,
        ("python", "-m", "ali_dist.train"),
    )
    assert parse_request(shlex.split(tunnel)).target == str(file)
    assert "RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265" in said


def test_a_cluster_that_has_just_started_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right after `up`, Ray's job server answers with status 500 and would do so as a traceback."""
    monkeypatch.setattr(jobs, "_AGENT_POLL_SECONDS", 0.0)
    refusal = RuntimeError("Request failed with status code 500: No available agent to submit job, please try again.")
    answers: list[object] = [refusal, refusal, "job_1"]
    assert jobs._retry_without_agent(Mock(side_effect=answers)) == "job_1"
    monkeypatch.setattr(jobs, "_AGENT_SECONDS", 0.0)
    with pytest.raises(InputError, match="takes no jobs yet"):
        jobs._retry_without_agent(Mock(side_effect=refusal))
    other = RuntimeError("Request failed with status code 500: something else")
    with pytest.raises(RuntimeError, match="something else"):
        jobs._retry_without_agent(Mock(side_effect=other))


def test_a_help_option_of_the_submitted_command_is_not_the_launchers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "absent.yaml", "--", "python", "--help"]) == 2
    assert "absent.yaml" in capsys.readouterr().err


def test_help_is_shown_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--help"]) == 0
    assert "Exit codes:" in capsys.readouterr().out
    assert main([]) == 2


# ---- SSH -------------------------------------------------------------------------------------------------------------

CLUSTER = ClusterFile(Path("mine.yaml"), "local", "10.0.0.1", ("10.0.0.2",), "me", Path("/keys/id"))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("me@10.0.0.2: Permission denied (publickey).", "does not let me in with the key /keys/id"),
        ("ssh: connect to host 10.0.0.2 port 22: Connection timed out", "cannot be reached by SSH"),
        ("ssh: Could not resolve hostname abc: Name or service not known", "cannot be reached by SSH"),
        ("Host key verification failed.", "ssh-keygen -R 10.0.0.2"),
        ("Load key: invalid format", "cannot be used by SSH (Load key: invalid format)"),
    ],
)
def test_an_error_of_ssh_becomes_a_sentence_with_the_fix(error: str, sentence: str) -> None:
    assert sentence in ssh.explain_ssh_error(CLUSTER, "10.0.0.2", error)


def test_ssh_never_waits_for_somebody_to_type() -> None:
    assert "BatchMode=yes" in ssh.build_ssh_command(CLUSTER)


# ---- tokens and keys -------------------------------------------------------------------------------------------------


def test_the_token_is_made_once_and_is_readable_by_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ray_cli.make_token()
    token_file = tmp_path / ".ray" / "auth_token"
    assert (token_file.stat().st_mode & 0o777, token_file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    token = token_file.read_text(encoding="ascii")
    assert len(token) >= 32
    token_file.chmod(0o644)
    ray_cli.make_token()
    assert token_file.read_text(encoding="ascii") == token
    assert token_file.stat().st_mode & 0o777 == 0o600


def test_keys_reach_the_command_alone_and_leave_the_metadata() -> None:
    metadata = {ACCESS_PREFIX + "AWS_SECRET_ACCESS_KEY": "s", "job_name": "a"}
    job = {"runtime_env": {}, "metadata": metadata}
    environment = unpack_access({"PATH": "/bin", "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)})
    assert environment.pop("AWS_SECRET_ACCESS_KEY") == "s"
    assert json.loads(environment.pop("RAY_JOB_CONFIG_JSON_ENV_VAR")) == job | {"metadata": {"job_name": "a"}}
    assert environment == {"PATH": "/bin"}


def test_variables_are_passed_by_name_or_value_but_keys_never() -> None:
    assert collect_variables(["A", "B=2=3"], {"A": "1"}) == {"A": "1", "B": "2=3"}
    for text in ("C", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY=x"):
        with pytest.raises(InputError, match=text.partition("=")[0]):
            collect_variables([text], {"AWS_SECRET_ACCESS_KEY": "x"})
