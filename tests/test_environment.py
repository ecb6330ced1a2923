"""One source of versions: imports are declared, what is declared is pinned, conda and pip read the same pins."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def pins(python: str) -> dict[str, str]:
    """What constraints.txt pins on that Python: canonical name -> version."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate(
            {"python_version": python, "python_full_version": f"{python}.9"}
        ):
            continue
        name = canonicalize_name(requirement.name)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{line}: not an exact pin"
        assert name not in found, f"{name} is pinned twice on Python {python}"
        found[name] = specifier.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_declared_package_is_pinned_to_a_version_that_fits(python):
    pinned = pins(python)
    for text in [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:  # an extra that brings another one
            assert requirement.extras <= set(EXTRAS)
            continue
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} has no pin in constraints.txt on Python {python}"
        assert requirement.specifier.contains(pinned[name]), f"{text}: constraints.txt pins {pinned[name]}"


def test_torch_is_pinned_without_a_build_suffix():
    assert "+" not in pins("3.11")["torch"]  # torch==2.x+cpu would take the GPU away from those who have one


def test_this_environment_is_the_pinned_one():
    pinned = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    wrong = {}
    for text in [*PROJECT["dependencies"], *EXTRAS["train"], *EXTRAS["course"], *EXTRAS["dev"]]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"] or (requirement.marker and not requirement.marker.evaluate()):
            continue
        name = requirement.name
        installed = importlib.metadata.version(name).split("+")[0]
        if installed != pinned[canonicalize_name(name)]:
            wrong[name] = installed
    assert not wrong, f"installed, but not as pinned (run `make setup`): {wrong}"


def test_environment_yml_brings_python_from_conda_and_every_version_from_the_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) == {"name", "channels", "dependencies"}
    *conda, pip_section = environment["dependencies"]
    specs = {spec.split("=")[0]: spec for spec in conda}
    assert list(specs) == ["python", "pip"]  # pip itself stands before the pip section, or conda warns and guesses
    version = specs["python"].split("=")[1]
    assert version in PYTHONS
    assert Requirement(f"python=={version}.0").specifier.contains(f"{version}.0")
    assert list(pip_section) == ["pip"]
    constraint, editable = pip_section["pip"]
    option, path = constraint.split()
    assert option == "-c" and (ROOT / path).is_file()
    option, target = editable.split()
    assert option == "-e" and target.startswith(".[")
    here = Requirement(target.replace(".", PROJECT["name"], 1))
    assert here.extras == {"course", "dev"} <= set(EXTRAS)


def test_the_makefile_and_conda_install_the_same_extras():
    assert '-c constraints.txt -e ".[course,dev]"' in (ROOT / "Makefile").read_text()


# The extra that brings what one file alone imports: that file is never imported by the rest, or only where it needs it.
EXTRA_OF = {
    "tools/distil_head.py": "anny",
    "tools/landmarks.py": "photographs",
    "expr_lib/images.py": "photographs",
    "expr_lib/films.py": "films",
    "expr_lib/step.py": "train",
    "expr_lib/train.py": "train",
    "expr_lib/measure/cards.py": "train",
    "expr_lib/apps/course.py": "course",
    "expr_lib/apps/widgets.py": "course",
    "expr_lib/apps/widget_parts.py": "course",
    "expr_lib/importers/align.py": "photographs",
    "expr_lib/measure/dlib_judge.py": "photographs",
    "expr_lib/apps/page.py": "web",
}


def imported_by(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"expr_lib", "__future__"}


FILES = sorted([*(ROOT / "expr_lib").rglob("*.py"), *(ROOT / "tools").glob("*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_import_is_declared(path):
    declared = [*PROJECT["dependencies"], *EXTRAS.get(EXTRA_OF.get(str(path.relative_to(ROOT)), ""), [])]
    packages = {canonicalize_name(Requirement(text).name) for text in declared}
    for module in imported_by(path):
        names = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "dlib": "dlib-bin"}
        distribution = names.get(module, module)
        assert canonicalize_name(distribution) in packages, f"{path.name}: {module} is not in pyproject.toml"


def test_no_file_outside_the_tests_is_longer_than_400_lines():
    folders = ("expr_lib", "tools", "benchmarks", "assignments", "notebooks")
    lengths = {p: len(p.read_text().splitlines()) for folder in folders for p in (ROOT / folder).rglob("*.py")}
    assert not {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > 400}


LAYERS = """
errors facs files images signals films processes blocks moving model losses muon schema tensors
datasets step take_step checkpoint run train swap
faces.parameters faces.sample faces.head faces.render faces.plan faces.build
importers.choose importers.pose importers.align importers.sheet photographs
importers.scale importers.source importers.labels importers.frames importers.people
importers.blendshapes importers.pickled importers.bp4d importers.ckplus importers.disfa importers.ganimation
importers.openface importers.pyfeat importers.rafd importers.table importers.unlabelled
importers.write
measure.metrics measure.judges measure.familiar measure.train_judges measure.dlib_judge
measure.probes measure.evaluate measure.plots measure.cards measure.report
apps.widget_parts apps.widgets apps.options apps.held_out apps.demo apps.page apps.pictures apps.animate
apps.reading apps.course apps.research apps.cli
""".split()


def imports_of_ours(path: Path) -> set[str]:
    """Modules of `expr_lib` that a file imports, wherever in the file, without the package's name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            module = node.module or ""
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("expr_lib.") for name in found} & set(LAYERS)


def test_every_file_has_its_place_in_the_order():
    files = {
        ".".join(p.relative_to(ROOT / "expr_lib").with_suffix("").parts) for p in (ROOT / "expr_lib").rglob("*.py")
    }
    assert {name for name in files if not name.endswith("__init__")} == set(LAYERS)


@pytest.mark.parametrize("own", LAYERS)
def test_imports_run_downwards_only(own):
    """A file imports only files that stand before it, so that the library can be read in one order."""
    found = imports_of_ours((ROOT / "expr_lib" / own.replace(".", "/")).with_suffix(".py"))
    above = {other for other in found if LAYERS.index(other) >= LAYERS.index(own)}
    assert not above, f"{own} imports {sorted(above)} from above"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, expr_lib; print([m for m in ('torch', 'numpy', 'matplotlib', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
