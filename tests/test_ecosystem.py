"""What other programs read beside the code: workflows, hooks, templates, citation."""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def test_the_workflow_runs_what_continuous_integration_runs():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert any(step.get("run") == ".ci/run" for step in jobs["all"]["steps"])
    assert all("runs-on" in job and "timeout-minutes" in job for job in jobs.values())
    named = set(re.findall(r"tests/test_\w+\.py", json.dumps(jobs)))
    assert named and all((ROOT / name).is_file() for name in named)


def test_the_hooks_are_local():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert {hook["id"] for hook in repos[0]["hooks"]} >= {"ruff", "nbstripout"}


def test_the_citation_is_the_one_of_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["preferred-citation"]["title"] in (ROOT / "README.md").read_text()
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_a_template_is_a_form(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form) and all("type" in part for part in form["body"])


def test_the_container_is_made_by_a_target_of_the_makefile():
    command = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())["postCreateCommand"]
    assert f"\n{command.removeprefix('make ')}:" in (ROOT / "Makefile").read_text()
