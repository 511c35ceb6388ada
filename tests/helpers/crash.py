"""Runs experiments in child processes that die by SIGKILL at a given moment.

    python -m tests.helpers.crash < runs

where each line is {"overrides": [...], "kill_at": n or null, "kill_after": seconds or null} in JSON. `kill_at` counts
moments: before and within each write, flush, link, rename and removal, and before each optimizer step. Answers each
with a line of JSON: the run's exit `status` (-9: killed), the `moments` it saw, the `seconds` it took.

The library is imported and the data made once and the children are forked, so that a run costs a second and not ten.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import safetensors.torch
import torch

from reptile_distil import Experiment
from reptile_distil.data import toy
from reptile_distil.runs.folder import RunFolder
from tests.helpers.paths import TINY


class Moments:
    """Counts the moments of this process, and kills it at one of them."""

    def __init__(self, kill_at):
        self.kill_at = kill_at
        self.count = 0

    def come(self, spoil=lambda: None):
        """One more moment; `spoil` leaves behind what a process that dies in the middle of it would."""
        self.count += 1
        if self.count == self.kill_at:
            spoil()
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self):
        for module, name in (
            (os, "fsync"),
            (os, "link"),
            (os, "rename"),
            (os, "replace"),
            (os, "truncate"),
            (shutil, "rmtree"),
            (torch.optim.AdamW, "step"),
        ):
            self._before(module, name)
        save_file, log, write_text = safetensors.torch.save_file, RunFolder.log, Path.write_text

        def half_saved(tensors, path, *arguments, **options):
            save_file(tensors, path, *arguments, **options)
            self.come(lambda: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]))

        def half_logged(folder, record):
            self.come(lambda: folder.metrics.open("a").write('{"event": "st'))
            log(folder, record)

        def half_written(path, text, *arguments, **options):
            self.come(lambda: write_text(path, text[: len(text) // 2], *arguments, **options))
            return write_text(path, text, *arguments, **options)

        safetensors.torch.save_file, RunFolder.log, Path.write_text = half_saved, half_logged, half_written

    def _before(self, module, name):
        function = getattr(module, name)

        def counted(*arguments, **options):
            self.come()
            return function(*arguments, **options)

        counted.__name__ = name
        setattr(module, name, counted)


def run_child(overrides, kill_at=None, kill_after=None):
    """The line about one run."""
    reader, writer = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if not child:
        moments = Moments(kill_at)
        moments.watch()
        code = 1
        try:
            Experiment.from_yaml(TINY, *overrides).fit()
            code = 0
        except Exception as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os.write(writer, str(moments.count).encode())
        os._exit(code)
    os.close(writer)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    moments = os.read(reader, 100)
    os.close(reader)
    return {"status": status, "moments": int(moments or 0), "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    for part in ("train", "dev"):
        toy.load_split(toy.TASKS["toy-sentence"], part)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run_child(**json.loads(line))) + "\n")
        sys.stdout.flush()
