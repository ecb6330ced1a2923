"""What other programs read beside the code: workflows, hooks, templates, citation."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]


def test_the_workflow_runs_what_continuous_integration_runs():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert any(step.get("run") == ".ci/run" for step in jobs["all"]["steps"])
    assert all("runs-on" in job and "timeout-minutes" in job for job in jobs.values())
    named = set(re.findall(r"tests/test_\w+\.py", json.dumps(jobs)))
    assert named and all((ROOT / name).is_file() for name in named)


SCHEMAS = {
    ".github/workflows/*.yml": "vendor.github-workflows",
    ".github/ISSUE_TEMPLATE/*.yml": "vendor.github-issue-forms",
    "CITATION.cff": "vendor.citation-file-format",
}


@pytest.mark.parametrize("pattern", SCHEMAS)
def test_it_is_what_its_reader_expects(pattern):
    """By the schemas that check-jsonschema brings along."""
    files = sorted(map(str, ROOT.glob(pattern)))
    assert files
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[pattern], *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_release_is_tested_and_built_before_it_is_published():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert any(step.get("run") == ".ci/run" for step in jobs["build"]["steps"])
    assert jobs["publish"]["needs"] == "build" and jobs["publish"]["permissions"] == {"id-token": "write"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/**/[!.]*.ipynb")), ids=lambda path: path.name)
def test_running_a_notebook_leaves_nothing_to_commit(path, tmp_path):
    """The filter that `make setup` gives to git, on what JupyterLab writes."""
    command = re.search(r"^STRIP +:= \$\(BIN\)/(.*)", (ROOT / "Makefile").read_text(), re.M)[1]
    prefix, keys = re.search(r"addprefix (\S+),(.*?)\)", command).groups()
    extra = " ".join(prefix + key for key in keys.split())
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.language_info |= {
        "codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py", "mimetype": "text/x-python",
        "nbconvert_exporter": "python", "pygments_lexer": "ipython3", "version": "3.12.1",
    }  # fmt: skip
    notebook.metadata.kernelspec.display_name = "Python 3 (ipykernel)"
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.execution_count, cell.outputs = 7, [nbformat.v4.new_output("stream", text="a line\n")]
    nbformat.write(notebook, tmp_path / "run.ipynb")
    cleaned = subprocess.run(
        [sys.executable, "-m", "nbstripout", "--keep-id", "--extra-keys", extra],
        stdin=(tmp_path / "run.ipynb").open("rb"), stdout=subprocess.PIPE, check=True,
    ).stdout  # fmt: skip
    assert cleaned == path.read_bytes()
    assert "*.ipynb filter=nbstripout" in (ROOT / ".gitattributes").read_text()


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
