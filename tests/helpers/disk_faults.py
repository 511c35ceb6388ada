"""Runs scripts in forked child processes, on a disk that fails or a machine that dies at a given moment.

    python -m tests.helpers.disk_faults < runs

where each line is the JSON of a `Run`; each is answered with a line of JSON: its exit `code` (negative: the signal that
ended it, None: it took too long and was killed) and its `seconds`. The library is imported once and the children are
forked, so that a run costs a second and not ten. What makes the disk fail is disk_faults.c, preloaded: it sees what
compiled libraries write too, but for the few that make system calls of their own (safetensors' last rename).
"""

import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "tiny.yaml"
COMPILER = shutil.which("gcc") or shutil.which("cc")
KILLED = 0
"""In place of an errno: the process dies by SIGKILL."""
FAULTS = {
    "write": errno.ENOSPC,
    "fsync": errno.EIO,
    "open": errno.EACCES,
    "rename": errno.EIO,
    "mkdir": errno.ENOSPC,
    "link": errno.EMLINK,
    "unlink": errno.EROFS,
    "rmdir": errno.EACCES,
    "truncate": errno.ENOSPC,
}
"""Each operation with a fault that it may have."""


@dataclasses.dataclass
class Fault:
    """What happens below `folder`: the `at`-th `operation` (0: none) and, if it `stays`, all later ones fail."""

    folder: str | Path
    operation: str = "any"
    at: int = 0
    errno: int = KILLED
    stays: bool = False
    trace: str | Path = ""
    """File that lists the operations."""

    def environment(self, library):
        """The variables that arm the library in a process of its own."""
        values = {f.name.upper(): str(getattr(self, f.name)) for f in dataclasses.fields(self)}
        settings = {f"DISK_FAULTS_{name}": value for name, value in {**values, "STAYS": str(int(self.stays))}.items()}
        return {"LD_PRELOAD": str(library), **settings}


class Done(NamedTuple):
    """How a script ended."""

    code: int | None
    out: str
    err: str
    seconds: float


def compile_library(folder):
    """Path of the library to preload."""
    library, source = folder / "disk_faults.so", Path(__file__).with_suffix(".c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@contextlib.contextmanager
def forked_scripts(folder):
    """A function that runs a script, `run("distil", "seed=1", fault=Fault(...))`; `folder` is for its own files."""
    preload = {"LD_PRELOAD": str(compile_library(folder))} if COMPILER else {}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **preload}
    command, errors = [sys.executable, "-m", "tests.helpers.disk_faults"], folder / "errors"

    def run(name, *arguments, fault=None, cwd=folder, timeout=60, **variables):
        arguments = list(map(str, arguments))
        fault = None if fault is None else [str(v) if isinstance(v, Path) else v for v in dataclasses.astuple(fault)]
        request = {"name": name, "arguments": arguments, "fault": fault, "cwd": str(cwd), "output": str(folder)}
        server.stdin.write(json.dumps({**request, "timeout": timeout, "variables": variables}) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, errors.read_text()
        texts = [(folder / stream).read_text(errors="replace") for stream in ("out", "err")]
        return Done(json.loads(answer)["code"], *texts, json.loads(answer)["seconds"])

    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env=environment,
        ) as server,
    ):
        yield run


def _serve(request):
    started = time.perf_counter()
    child = os.fork()
    if not child:
        _become(**request)
    deadline = started + request["timeout"]
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.perf_counter() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"code": None, "seconds": time.perf_counter() - started}
        time.sleep(0.005)
    return {"code": os.waitstatus_to_exitcode(ended[1]), "seconds": time.perf_counter() - started}


def _become(*, name, arguments, fault, cwd, output, variables, timeout):
    """Ends this process as the script would."""
    os.setpgid(0, 0)  # what it starts is not the server's
    for stream, path in enumerate((os.devnull, f"{output}/out", f"{output}/err")):
        os.dup2(os.open(path, os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
    os.chdir(cwd)
    os.environ.update(variables)
    sys.argv = [str(ROOT / "scripts" / f"{name}.py"), *arguments]
    if fault is not None:
        folder, operation, at, number, stays, trace = fault
        arm = ctypes.CDLL(None).disk_faults_arm
        arm(folder.encode(), operation.encode(), ctypes.c_long(at), number, int(stays), trace.encode())
    code = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    from reptile_distil import Experiment, toy

    Experiment.from_yaml(TINY)
    for part in ("train", "dev"):
        toy.load_split(toy.TASKS["toy-sentence"], part)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(_serve(json.loads(line))) + "\n")
        answers.flush()
