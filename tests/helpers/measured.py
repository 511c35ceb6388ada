"""What a study has measured, asked for as its README tells it: differences, times, what became of the teachers."""

import csv
from collections import defaultdict
from statistics import fmean

from tests.helpers.studies import compare, read_runs


class Measured:
    """The runs of one file of raw results. Where no tasks are given, a mean or comparison is over all of them."""

    def __init__(self, path, split="dev"):
        with path.open(encoding="utf-8", newline="") as file:
            self.lines = list(csv.DictReader(file))
        self.runs = read_runs(path, split)
        self.tasks = list(dict.fromkeys(task for task, _ in self.runs))
        self.seeds = sorted({seed for of_row in self.runs.values() for seed in of_row})
        self.num_runs = sum(len(of_row) for of_row in self.runs.values())

    def of(self, method, tasks=None):
        """The runs of a method: task, seed, numbers."""
        tasks = tasks or self.tasks
        return [(task, seed, run) for task in tasks for seed, run in self.runs.get((task, method), {}).items()]

    def mean(self, method, column, tasks=None):
        return fmean(run[column] for _, _, run in self.of(method, tasks))

    def against(self, method, other="kd", tasks=None, column="student"):
        """A method minus another over the pairs of task and seed; tasks on which it was not run are left out."""
        tasks = [task for task in tasks or self.tasks if (task, method) in self.runs]
        return compare(self.runs, tasks, method, other, column)

    def p(self, method, other="kd"):
        return self.against(method, other).p_value

    def differences(self, method, other="kd", tasks=None, column="student"):
        """What `against` compares: one for each pair of task and seed."""
        of_method = self.of(method, tasks)
        return [run[column] - self.runs[task, other][seed][column] for task, seed, run in of_method]

    def difference(self, method, other="kd", tasks=None, column="student"):
        return fmean(self.differences(method, other, tasks, column))

    def ahead(self, method, other="kd", tasks=None):
        return f"{self.difference(method, other, tasks):+.1f}"

    def behind(self, method, other="kd", tasks=None):
        return f"{-self.difference(method, other, tasks):.1f}"

    def lost(self, method, tasks=None):
        """By how much the teacher's own score fell."""
        return self.mean(method, "start", tasks) - self.mean(method, "end", tasks)

    def lost_by_task(self, method):
        return [self.lost(method, [task]) for task in self.tasks if (task, method) in self.runs]

    def times(self, method, other="kd", tasks=None):
        """How many times the other's seconds of training a method took."""
        return self.mean(method, "seconds", tasks) / self.mean(other, "seconds", tasks)

    def dots(self, methods):
        """(task, method, what the teacher lost, what the student is ahead of that of kd), for each run."""
        return [
            (task, method, run["start"] - run["end"], run["student"] - self.runs[task, "kd"][seed]["student"])
            for method in methods
            for task, seed, run in self.of(method)
        ]

    def scores(self, method, epoch, tasks=None, model="student"):
        """A model's scores on the validation rows after an epoch, one for each task and seed, in percent."""
        values = defaultdict(list)
        for line in self._lines(method, epoch, tasks):
            if (line["model"], line["split"]) == (model, "validation"):
                values[line["task"], line["seed"]].append(100 * float(line["value"] or "nan"))
        return [fmean(of_run) for of_run in values.values()]

    def logged(self, metric, method, epoch, tasks=None):
        """`gap` or `teacher_drift` after an epoch, in the mean over tasks and seeds."""
        return fmean(float(line["value"]) for line in self._lines(method, epoch, tasks) if line["metric"] == metric)

    def _lines(self, method, epoch, tasks):
        return [
            line
            for line in self.lines
            if line["task"] in (tasks or self.tasks) and (line["method"], line["epoch"]) == (method, str(epoch))
        ]
