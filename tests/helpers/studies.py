"""The tables in the READMEs of the studies, computed from the CSV beside them and from nothing else."""

import csv
import math
import statistics
from collections import defaultdict

from reptile_distil.tables.statistics import compare_paired


def read_runs(path):
    """(task, method) → seed → {what: number}: the kept student's scores, the teacher's at start and end, seconds."""
    lines = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            lines[line["task"], line["method"], int(line["seed"])].append(line)
    runs = defaultdict(dict)
    for (task, method, seed), of_run in lines.items():
        last = max(int(line["epoch"]) for line in of_run)
        (kept,) = [int(line["epoch"]) for line in of_run if line["metric"] == "chosen" and line["value"] == "1"]
        runs[task, method][seed] = {
            "validation": mean_score(of_run, "student", kept, "validation"),
            "student": mean_score(of_run, "student", kept),
            "start": mean_score(of_run, "teacher", 0),
            "end": mean_score(of_run, "teacher", last),
            "seconds": max(float(line["train_seconds"]) for line in of_run),
            "steps": max(int(line["step"]) for line in of_run),
        }
    return runs


def mean_score(lines, model, epoch, split="dev"):
    """In percent: the mean of a task's scores on a split; NaN where one is undefined or there are none."""
    scores = [
        float(line["value"] or "nan")
        for line in lines
        if (line["model"], line["split"], int(line["epoch"])) == (model, split, epoch)
    ]
    return 100 * statistics.fmean(scores) if scores else math.nan


def table_lines(runs, tasks, methods, baseline="kd"):
    """Lines of Markdown: a row for each method of each task, then for each method over all tasks."""
    yield "| task | method | student, validation | dev | dev minus kd | teacher, dev: start → end | training, s |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for task in tasks:
        for method in methods:
            of_row = runs.get((task, method))
            if of_row:
                yield _line(task, method, of_row, runs.get((task, baseline), {}) if method != baseline else {})
    for method in methods:
        pairs = [
            (of_seed["student"], runs[task, baseline][seed]["student"])
            for task in tasks
            for seed, of_seed in sorted(runs.get((task, method), {}).items())
            if method != baseline and seed in runs.get((task, baseline), {})
        ]
        if pairs:
            yield f"| all | {method} | | | {_difference(pairs)} | | |"


def _line(task, method, of_row, of_baseline):
    def column(name):
        return [of_row[seed][name] for seed in sorted(of_row)]

    pairs = [(of_row[seed]["student"], of_baseline[seed]["student"]) for seed in sorted(of_row) if seed in of_baseline]
    teacher = "" if math.isnan(column("start")[0]) else f"{_mean(column('start'))} → {_mean(column('end'))}"
    seconds = f"{statistics.fmean(column('seconds')):.0f}"
    difference = _difference(pairs) if pairs else ""
    students = f"{_spread(column('validation'))} | {_spread(column('student'))}"
    return f"| {task} | {method} | {students} | {difference} | {teacher} | {seconds} |"


def _spread(values):
    return _mean(values) + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _mean(values):
    return f"{statistics.fmean(values):.1f}"


def _difference(pairs):
    compared = compare_paired(*zip(*pairs, strict=True))
    if len(pairs) == 1:
        return f"{compared.mean_difference:+.1f}, n 1"
    low, high, p = compared.low, compared.high, compared.p_value
    return f"{compared.mean_difference:+.1f} [{low:+.1f}, {high:+.1f}] p {p:.2g}, n {len(pairs)}"


HEADROOM = ("frozen", "labels", "averaged", "more_labels", "oracle")


def read_headroom(path):
    """(task, row) → targets → {what: number}: mean scores over seeds at the last step, difference and interval."""
    lines = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            lines[line["task"], line["row"], line["targets"]].append(line)
    measured = defaultdict(dict)
    for (task, row, targets), of in lines.items():
        of_student = [line for line in of if line["model"] == "student"]
        last = max(int(line["step"]) for line in of_student)
        scores = {
            "student": [float(line["value"]) for line in of_student if int(line["step"]) == last],
            "teacher": [float(line["value"]) for line in of if line["model"] == "teacher"],
        }
        over_seeds = {line["metric"]: 100 * float(line["value"]) for line in of if line["seed"] == "all"}
        means = {name: 100 * statistics.fmean(values) for name, values in scores.items() if values}
        seeds = len({line["seed"] for line in of_student})
        measured[task, row][targets] = {**means, **over_seeds, "seeds": seeds}
    return measured


def headroom_lines(measured):
    """Lines of Markdown: a row for each task and kind of batches; what better targets add to the frozen teacher's."""
    yield "| task | rows | frozen teacher | its students | labels alone | averaged | 8 times the labels | oracle |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for (task, row), by_targets in measured.items():
        frozen = by_targets["frozen"]
        differences = [
            "{difference:+.1f} [{low:+.1f}, {high:+.1f}]".format(**by_targets[targets]) for targets in HEADROOM[1:]
        ]
        yield f"| {task} | {row} | {frozen['teacher']:.1f} | {frozen['student']:.1f} | {' | '.join(differences)} |"


def held_out_lines(path, baseline="kd"):
    """Lines of Markdown: for each task and method the scores on the held-out rows, in the table's order, one seed."""
    lines = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            lines[line["task"], line["method"]].append(line)
    scores = {}
    for key, of_run in lines.items():
        last = max(int(line["epoch"]) for line in of_run)
        (kept,) = [int(line["epoch"]) for line in of_run if line["metric"] == "chosen" and line["value"] == "1"]
        student, start, end = (
            mean_score(of_run, model, epoch, "validation")
            for model, epoch in (("student", kept), ("teacher", 0), ("teacher", last))
        )
        steps, seconds = (max(float(line[name]) for line in of_run) for name in ("step", "train_seconds"))
        scores[key] = (student, start, end, steps, seconds)
    yield "| task | row | student | minus kd | teacher: start → end | steps | training, s |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for (task, method), (student, start, end, steps, seconds) in scores.items():
        if method != "teacher":
            difference = "" if method == baseline else f"{student - scores[task, baseline][0]:+.1f}"
            teacher = "" if math.isnan(start) else f"{start:.1f} → {end:.1f}"
            yield f"| {task} | {method} | {student:.1f} | {difference} | {teacher} | {steps:.0f} | {seconds:.0f} |"
