"""Files that others' programs read: citation, workflow, hooks and issue forms. What they name exists.

Run: `make test ARGS=tests/unit/project/test_project_files.py`
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from ali_dist.version import VERSION
from tests.unit.project.test_tooling import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
INPUTS = {"checkboxes", "dropdown", "input", "textarea"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def check_make_target(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"there is no make {target}"


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires
    assert citation["version"] == VERSION
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert [author["family-names"] for author in paper["authors"]][:2] == ["Dumoulin", "Belghazi"]
    assert paper["url"] in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_and_its_commands_exist(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 180, name
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), step
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), step["uses"]
                continue
            program, argument, *rest = shlex.split(step["run"])
            assert not rest, step["run"]
            if program == "make":
                check_make_target(argument)
            else:
                assert program == "bash"
                assert (ROOT / argument).is_file(), step["run"]


def test_the_workflow_checks_tests_advisories_and_documentation_on_the_oldest_python() -> None:
    jobs = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"].values()
    commands = {step["run"] for job in jobs for step in job["steps"] if "run" in step}
    assert commands == {"bash .ci/run", "make audit", "make docs"}
    versions = {step["with"]["python-version"] for job in jobs for step in job["steps"] if "setup-python" in str(step)}
    assert versions == {"3.11"}


def test_the_hooks_of_pre_commit_run_what_make_lint_runs_and_fetch_nothing() -> None:
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert all(hook["language"] == "system" for hook in repository["hooks"])
    entries = [hook["entry"] for hook in repository["hooks"]]
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    lines = [line.strip("\t@") for line in recipe.splitlines()[1:]]
    expanded = [line.replace("$(PY)", ".venv/bin/python").replace("$(VENV)", ".venv") for line in lines]
    assert entries == [line.removesuffix(" .") for line in expanded]
    for entry in entries:
        if match := re.search(r" -m (\w+)", entry):
            assert importlib.util.find_spec(match[1]), entry


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_is_one_that_can_be_shown(path: Path) -> None:
    """A form with a mistake is silently left out of the list that people choose from."""
    form = read(path)
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert fields
    assert {field["type"] for field in fields} <= INPUTS
    assert len({field["id"] for field in fields}) == len(fields)
    for field in fields:
        assert field["attributes"]["label"]
        assert isinstance(field["attributes"].get("options", ["one"]), list)
        assert all(isinstance(option, str) for option in field["attributes"].get("options", []))
