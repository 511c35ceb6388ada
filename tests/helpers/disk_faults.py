"""Runs scripts in forked child processes, on a disk that fails or a machine that dies at a given moment.

    python -m tests.helpers.disk_faults < runs

where each line is the JSON of a script's name and arguments; it is answered with a line of JSON: the exit `code`
(negative: the signal that ended it, null: it took too long and was killed), its `seconds` and CPU seconds. The library
is imported once and the children are forked, so that a run costs a second and not ten. What makes the disk fail is
disk_faults.c, preloaded: it sees what compiled libraries write too, but for the few that make system calls of their
own (safetensors' last rename). A script started by hand takes the same faults from its environment (DISK_FAULTS_...).
"""

import contextlib
import ctypes
import dataclasses
import errno
import importlib
import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from tests.helpers.paths import ROOT, TINY

IMPORTED_WHEN_NEEDED = (
    *("datasets", "pandas", "pyarrow.parquet", "scipy.stats", "transformers.models.bert.modeling_bert"),
)
"""What a script would import anew, for seconds, each time it is run."""

COMPILER = shutil.which("gcc") or shutil.which("cc")
MAX_BYTES = 3 * 2**30
"""Memory of a script: what reads a file without end fails, and takes nothing from others."""
KILLED = 0
"""In place of an errno: the process dies by SIGKILL."""
PAUSED = -signal.SIGSTOP
"""In place of an errno: the process waits while the test does something, and then goes on."""
FAULTS = {
    "write": errno.ENOSPC,
    "fsync": errno.EIO,
    "open": errno.EACCES,
    "rename": errno.EIO,
    "mkdir": errno.ENOSPC,
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


class Done(NamedTuple):
    """How a script ended."""

    code: int | None
    out: str
    err: str
    seconds: float
    cpu_seconds: float

    def assert_refused(self, *names):
        """The script ended with exit code 2 and one sentence, which has the names in it."""
        assert self.code is not None, f"hangs: {self.err}"
        assert "Traceback" not in self.err, self.err
        assert "out of memory" not in self.err, self.err
        assert self.code == 2, self
        *_, last = self.err.splitlines()
        assert [line for line in self.err.splitlines() if "error: " in line] == [last], self.err
        assert all(str(name) in last for name in names), last

    def assert_done_or_refused(self, *names):
        """The script did its work, or refused it as `assert_refused` says."""
        if self.code != 0:
            self.assert_refused(*names)


def compile_library(folder):
    """Path of the library to preload."""
    library, source = folder / "disk_faults.so", Path(__file__).with_suffix(".c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@contextlib.contextmanager
def forked_scripts(folder):
    """A function that runs a script, `run("distil", "seed=1", fault=Fault(...))`; `folder` is for its own files."""
    preload = {"LD_PRELOAD": str(compile_library(folder))} if COMPILER else {}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home")}
    environment |= preload
    command, errors = [sys.executable, "-m", "tests.helpers.disk_faults"], folder / "errors"

    def run(name, *arguments, fault=None, cwd=folder, timeout=60, while_paused=None, **variables):
        arguments = list(map(str, arguments))
        fault = None if fault is None else [str(v) if isinstance(v, Path) else v for v in dataclasses.astuple(fault)]
        request = {"name": name, "arguments": arguments, "fault": fault, "cwd": str(cwd), "output": str(folder)}
        server.stdin.write(json.dumps({**request, "timeout": timeout, "variables": variables}) + "\n")
        server.stdin.flush()
        while (answer := json.loads(server.stdout.readline() or "null")) == "paused":
            while_paused()
            server.stdin.write("on\n")
            server.stdin.flush()
        assert answer, errors.read_text()
        texts = [(folder / stream).read_text(errors="replace") for stream in ("out", "err")]
        return Done(answer["code"], *texts, answer["seconds"], answer["cpu_seconds"])

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
        run.err = folder / "err"
        server.stdout.readline()  # the library is imported: from now on a script takes a second
        yield run


def _serve(request, requests, answers):
    """Runs one script; answers with how it ended."""
    started = time.perf_counter()
    child = os.fork()
    if not child:
        _become(**request)
    while True:
        process, status, usage = os.wait4(child, os.WNOHANG | os.WUNTRACED)
        if process and os.WIFSTOPPED(status):
            _answer(answers, "paused")
            requests.readline()
            os.kill(child, signal.SIGCONT)
        elif process:
            break
        elif time.perf_counter() - started > request["timeout"]:
            os.kill(child, signal.SIGKILL)
            _, _, usage = os.wait4(child, 0)
            break
        else:
            time.sleep(0.005)
    code = os.waitstatus_to_exitcode(status) if process else None
    seconds, cpu_seconds = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    _answer(answers, {"code": code, "seconds": seconds, "cpu_seconds": cpu_seconds})


def _answer(answers, values):
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def _become(*, name, arguments, fault, cwd, output, variables, timeout):
    """Ends this process as the script would."""
    os.setpgid(0, 0)  # what it starts is not the server's
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
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
    from reptile_distil import Experiment
    from reptile_distil.data import toy

    for module in IMPORTED_WHEN_NEEDED:
        importlib.import_module(module)
    Experiment.from_yaml(TINY)
    for part in ("train", "dev"):
        toy.load_split(toy.TASKS["toy-sentence"], part)
    _answer(sys.stdout, "ready")
    while line := sys.stdin.readline():
        _serve(json.loads(line), sys.stdin, sys.stdout)
