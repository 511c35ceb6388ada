"""The tables in the READMEs of the studies, computed from the CSV beside them and from nothing else."""

import csv
import math
import statistics
from collections import defaultdict

from reptile_distil.audit.summary import mean_with_interval
from reptile_distil.tables.statistics import compare_paired


def read_runs(path, split="dev"):
    """(task, method) → seed → {what: number}: the kept student's scores, the teacher's at start and end, seconds.

    `student`, `start` and `end` are scores on `split`; on the held-out rows that is `validation`. `at_end` is the
    student's score on these after the last epoch, whichever was kept.
    """
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
            "student": mean_score(of_run, "student", kept, split),
            "at_end": mean_score(of_run, "student", last, "validation"),
            "epochs": last,
            "start": mean_score(of_run, "teacher", 0, split),
            "end": mean_score(of_run, "teacher", last, split),
            "seconds": max(float(line["train_seconds"]) for line in of_run),
            "steps": max(int(line["step"]) for line in of_run),
        }
    return runs


def compare(runs, tasks, first, second="kd", column="student"):
    """The first method minus the second over all pairs of task and seed that both have."""
    cells = [(task, seed) for task in tasks for seed in sorted(runs[task, first].keys() & runs[task, second].keys())]
    scores = [[runs[task, method][seed][column] for task, seed in cells] for method in (first, second)]
    return compare_paired(*scores)


def told(compared):
    """A comparison in words: the difference, its interval and p."""
    return f"{compared.mean_difference:+.1f} [{compared.low:+.1f}, {compared.high:+.1f}] p {compared.p_value:.2g}"


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
    return _of_comparison(compare_paired(*zip(*pairs, strict=True)))


def _of_comparison(compared):
    if compared.n == 1:
        return f"{compared.mean_difference:+.1f}, n 1"
    return f"{told(compared)}, n {compared.n}"


HEADROOM = ("frozen", "labels", "averaged", "more_labels", "oracle")


def read_headroom(path):
    """(task, row) → targets → {what: number}: mean scores over seeds at the last step, difference and interval.

    `gain` of the frozen teacher's student is what it has over that of labelled rows alone: difference and interval.
    """
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
        over_frozen, over_labelled = (
            {line["metric"]: 100 * float(line["value"]) for line in of if line["model"] == f"student minus {other}"}
            for other in ("frozen", "labelled")
        )
        means = {name: 100 * statistics.fmean(values) for name, values in scores.items() if values}
        rows = {"step": last} | {name: int(of_student[0][name]) for name in ("labelled_rows", "transfer_rows")}
        seeds = len({line["seed"] for line in of_student})
        measured[task, row][targets] = {**means, **over_frozen, **rows, "gain": over_labelled, "seeds": seeds}
    return measured


def headroom_lines(measured):
    """Lines of Markdown: a row for each task and kind of batches; what better targets add to the frozen teacher's."""
    yield (
        "| task | rows | seeds | frozen teacher | its students | over labelled rows | labels alone | averaged "
        "| 8 times the labels | oracle |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for (task, row), by_targets in measured.items():
        frozen = by_targets["frozen"]
        is_as_long = frozen["step"] == measured[task, "labelled"]["frozen"]["step"]
        gain = with_interval(frozen["gain"]) if frozen["gain"] and is_as_long else ""
        cells = [gain, *(with_interval(by_targets[targets]) for targets in HEADROOM[1:])]
        means = f"{frozen['seeds']} | {frozen['teacher']:.1f} | {frozen['student']:.1f}"
        yield f"| {task} | {row} | {means} | {' | '.join(cells)} |"


def with_interval(compared):
    """A difference in points with its ends."""
    return "{difference:+.1f} [{low:+.1f}, {high:+.1f}]".format(**compared)


def comparison_lines(runs, tasks, moving="cotrain", bar="kd-longer", baseline="kd"):
    """Two sentences of the comparison's README: differences over all pairs of task and seed, and by the rule a verdict.

    Yes: at least 1.0 over the bar, interval above 0, p below 0.05. No: four tasks or more and the upper end of the
    interval over the baseline below 1.0. Neither otherwise.
    """
    over_bar, over_baseline = (compare(runs, tasks, moving, other) for other in (bar, baseline))
    verdict = "neither"
    if over_bar.mean_difference >= 1 and over_bar.low > 0 and over_bar.p_value < 0.05:
        verdict = "yes"
    elif len(tasks) >= 4 and over_baseline.high < 1:
        verdict = "no"
    for other, compared in ((bar, over_bar), (baseline, over_baseline)):
        yield f"`{moving}` minus `{other}`: {_of_comparison(compared)}"
    yield f"Verdict: **{verdict}**"


def held_out_lines(runs, baseline="kd"):
    """Lines of Markdown: for each task and method the means over seeds; then each method over all tasks and seeds."""
    yield "| task | row | seeds | student | minus kd | teacher: start → end | steps | training, s |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    paired = defaultdict(list)
    for (task, method), of_row in runs.items():
        if method == "teacher":
            continue
        mean = {name: statistics.fmean(of[name] for of in of_row.values()) for name in ("start", "end", "steps")}
        teacher = "" if math.isnan(mean["start"]) else f"{mean['start']:.1f} → {mean['end']:.1f}"
        of_baseline = runs[task, baseline] if method != baseline else {}
        pairs = [(of["student"], of_baseline[seed]["student"]) for seed, of in of_row.items() if seed in of_baseline]
        paired[method] += pairs
        difference = f"{statistics.fmean(ours - theirs for ours, theirs in pairs):+.1f}" if pairs else ""
        student, seconds = (_mean([of[name] for of in of_row.values()]) for name in ("student", "seconds"))
        steps, seconds = f"{mean['steps']:.0f}", f"{float(seconds):.0f}"
        yield f"| {task} | {method} | {len(of_row)} | {student} | {difference} | {teacher} | {steps} | {seconds} |"
    for method, pairs in paired.items():
        if len(pairs) > 1:
            yield f"| all | {method} | | | {_difference(pairs)} | | | |"


def longer_teacher_lines(runs, longer):
    """Lines of Markdown: for each task, seed by seed, kd from a teacher that was stopped, and from one trained on."""
    yield "| task | teacher, stopped | its student | teacher of 30 epochs | its student | difference |"
    yield "|---|---:|---:|---:|---:|---:|"
    for (task, method), of_row in longer.items():
        if method == "kd":
            for seed, of in of_row.items():
                stopped = runs[task, "kd"][seed]
                cells = [f"{one[name]:.1f}" for one in (stopped, of) for name in ("start", "student")]
                yield f"| {task} | {' | '.join(cells)} | {of['student'] - stopped['student']:+.1f} |"


def audit_lines(path):
    """Lines of Markdown: for each method and point of a run, in thousandths of the loss, what one step is worth."""
    stages = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            stages[line["method"], line["step"]].append(line)
    yield "| method | after step | a step of kd gains | one move more | all moves so far | knows the batch, % |"
    yield "|---|---:|---:|---:|---:|---:|"
    for (method, step), of_stage in stages.items():
        loss = {
            name: [1000 * float(line[name]) for line in of_stage] for name in ("before", "frozen", "so_far", "moved")
        }
        compared = [("before", "frozen"), ("so_far", "moved"), ("frozen", "so_far")]
        cells = [_thousandths([a - b for a, b in zip(loss[one], loss[other], strict=True)]) for one, other in compared]
        knows = [100 * float(line["knows"]) for line in of_stage if line["knows"]]
        yield (
            f"| {method} | {step} | {' | '.join(cells)} | {statistics.fmean(knows):.0f} |"
            if knows
            else (f"| {method} | {step} | {' | '.join(cells)} | |")
        )


def _thousandths(values):
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*mean_with_interval(values))
