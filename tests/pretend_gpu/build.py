"""The guard (guard.cpp), compiled once for each user, PyTorch and compiler, and loaded before PyTorch is.

Nothing here imports torch: PyTorch looks for the hooks when its own libraries start.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")


def why_not() -> str | None:
    """Why there can be no pretended GPU here; None where there can."""
    if find_compiler() is None:
        return "the pretended GPU needs a C++ compiler"
    if sys.platform != "linux":
        return "the pretended GPU is compiled for Linux alone"
    if _torch_version().partition("+")[2] not in ("", "cpu"):
        return "the pretended GPU takes the place of a real one only in a PyTorch without CUDA"
    return None


def find_compiler() -> str | None:
    """Path of the C++ compiler."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)


def library() -> Path:
    """The compiled guard. Raises `RuntimeError` with the compiler's words where it does not compile."""
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError("there is no C++ compiler")
    key = hashlib.sha256(SOURCE.read_bytes() + f"{_torch_file()} {_torch_version()} {compiler}".encode()).hexdigest()[
        :16
    ]
    file = _folder() / f"guard-{key}.so"
    if not file.exists():
        _compile(compiler, file)
    return file


def load() -> None:
    """Loads the guard into this process, where torch must not be imported yet."""
    if "torch" in sys.modules:
        raise RuntimeError("the pretended GPU must be loaded before torch")
    ctypes.CDLL(str(library()), mode=ctypes.RTLD_GLOBAL)


def _compile(compiler: str, file: Path) -> None:
    torch_folder = Path(_torch_file()).parent
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".so") as unfinished:
        libraries = torch_folder / "lib"
        command = [compiler, "-std=c++20", "-O0", "-w", "-shared", "-fPIC", str(SOURCE), "-o", unfinished.name]
        command += [f"-I{torch_folder / 'include'}", f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
        done = subprocess.run([*command, "-ltorch_cpu", "-lc10"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the guard does not compile: {done.stderr}")
        shutil.copy(unfinished.name, f"{unfinished.name}.done")
    Path(f"{unfinished.name}.done").replace(file)  # whole, whoever else compiles it at this moment


def _folder() -> Path:
    """A folder that only this user writes to: what lies in it is loaded into the process."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "reptile_distil_tests"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return Path(tempfile.mkdtemp())
    return folder


def _torch_version() -> str:
    return importlib.metadata.version("torch")


def _torch_file() -> str:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return found.origin
