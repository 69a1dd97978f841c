"""The tests of a library as the source distribution of its installed version holds them."""

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache" / "source-distributions"


def download(name: str) -> Path:
    """The archive of the installed version, downloaded once; one that lies in `CACHE` is taken as it is.

    Raises:
        RuntimeError: if there is none, with what pip says.
    """
    version = importlib.metadata.version(name)
    file = CACHE / f"{name}-{version}.tar.gz"
    if not file.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name]
            arguments = [f"{name}=={version}", "--dest", folder]
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=600, check=False)
            if done.returncode != 0:
                message = f"{file.name} could not be downloaded from the package index. Put it into {CACHE}."
                raise RuntimeError(f"{message}\n{done.stderr}")
            shutil.move(Path(folder) / file.name, file)
    return file


def unpack_tests(name: str, folder: Path) -> Path:
    """A folder with the package `tests` of the library, unpacked inside `folder`."""
    with tarfile.open(download(name)) as archive:
        members = [member for member in archive.getmembers() if "tests" in Path(member.name).parts[1:2]]
        archive.extractall(folder, members, filter="data")
    (root,) = folder.iterdir()
    (root / "tests" / "__init__.py").touch()  # Transformers' tests import it, and the archive leaves it out
    return root
