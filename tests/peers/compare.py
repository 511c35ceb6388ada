"""Whole processes side by side: kd by this project, by a loop as one writes it by hand, and by Hugging Face's Trainer.

python -m tests.peers.compare --data FOLDER --teacher DIR --student DIR [--rounds 5]: FOLDER has train.tsv and dev.tsv
(sentence, label 0 or 1), DIR are models with two classes and their tokenizers. All train on the same rows, in turn.
`ours, first` finds an empty cache, or a copy of `--cache`, which may be that of the teacher's own run; `ours, later` is
the next run with the same teacher and rows, of another seed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from reptile_distil.runtime.text_tables import markdown_table
from tests.helpers.paths import ROOT

CONTENDERS = ("loop", "trainer", "ours, first", "ours, later")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("data", "teacher", "student"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    given = parser.parse_args(argv)
    measured = {name: [] for name in given.contenders}
    for number in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            if given.cache:
                shutil.copytree(given.cache, Path(folder) / "cache")
            for name in given.contenders:
                measured[name].append(run(name, given, Path(folder)))
                sys.stderr.write(f"round {number + 1}, {name}: {json.dumps(measured[name][-1])}\n")
    sys.stdout.write(table(measured) + "\n")


def run(name, given, folder):
    """CPU seconds (all threads, user and system), peak resident bytes, training steps a second and score of one run."""
    out = folder / name.replace(", ", "-")
    is_ours = name.startswith("ours")
    command = [sys.executable, *(ours(name, given, folder, out) if is_ours else peer(name, given, out))]
    variables = {"OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = subprocess.Popen(command, stdout=output, stderr=errors, cwd=ROOT, env={**os.environ, **variables})
        _, status, usage = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if started.returncode:
            raise SystemExit(f"{name}: {errors.read()}")
        said = json.loads((out / "results.json").read_text() if is_ours else output.read().splitlines()[-1])
    return {
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss * 1024 / 1e6,
        "steps_per_second": said["num_steps"] / said["train_seconds"],
        "score": said["score"],
    }


def peer(name, given, out):
    options = {"data": given.data, "teacher": given.teacher, "student": given.student, "epochs": given.epochs}
    return ["-m", f"tests.peers.{name}", *(f"--{key}={value}" for key, value in {**options, "out": out}.items())]


def ours(name, given, folder, out):
    files = "{train: train.tsv, dev: dev.tsv}"
    return [
        "scripts/distil.py",
        *("--config", "configs/base.yaml", "method=kd", f"output_dir={out}", f"seed={42 + name.endswith('later')}"),
        f"task={{name: rows, text: [sentence], labels: ['0', '1'], metrics: [accuracy], files: {files}}}",
        *(f"data.path={given.data.resolve()}", "data.max_length=128", f"data.cache_dir={folder}/cache"),
        *(f"teacher.finetuned={given.teacher.resolve()}", "teacher.label_names=['0', '1']"),
        *(f"student.pretrained={given.student.resolve()}", f"train.epochs={given.epochs}", "train.batch_size=32"),
        *("device=cpu", f"num_threads={given.threads}"),
    ]


def table(measured):
    """Medians over the rounds, and each contender's CPU seconds and memory in units of the first one's."""
    names = ("cpu_seconds", "peak_mb", "steps_per_second", "score")
    medians = {
        contender: {name: statistics.median(run[name] for run in runs) for name in names}
        for contender, runs in measured.items()
    }
    base = next(iter(medians.values()))
    rows = [
        (
            contender,
            *(f"{of['cpu_seconds']:.1f}", f"{of['cpu_seconds'] / base['cpu_seconds']:.2f}"),
            *(f"{of['peak_mb']:.0f}", f"{of['peak_mb'] / base['peak_mb']:.2f}"),
            *(f"{of['steps_per_second']:.2f}", f"{of['score']:.3f}"),
        )
        for contender, of in medians.items()
    ]
    headings = ["process", "CPU s", "of the first", "peak MB", "of the first", "steps/s", "dev accuracy"]
    return markdown_table(headings, rows)


if __name__ == "__main__":
    main()
