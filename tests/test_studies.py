"""Every number in a study's table can be had from the raw results beside it."""

import csv
from pathlib import Path

import pytest

from reptile_distil.table_config import load_table_config
from tests.studies import read_runs, table_lines

CONFIGS = Path(__file__).parents[1] / "configs"
STUDIES = {"minilm": "table.yaml", "toy": "ablation.yaml"}


@pytest.mark.parametrize("name", STUDIES)
def test_the_table_of_a_study_is_computed_from_its_raw_results(name):
    folder = CONFIGS / name
    table = load_table_config(folder / STUDIES[name])
    runs = read_runs(folder / "epochs.csv")
    tasks = [task.name for task in table.tasks if any(task.name == of_run for of_run, _ in runs)]
    expected = list(table_lines(runs, tasks, table.keys.methods))
    readme = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(expected) > 2 + len(tasks)
    first = readme.index(expected[0])
    assert readme[first : first + len(expected)] == expected
    assert not readme[first + len(expected)].startswith("|")


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_every_seed_of_each_row_that_it_shows(name):
    runs = read_runs(CONFIGS / name / "epochs.csv")
    seeds = set(load_table_config(CONFIGS / name / STUDIES[name]).seeds)
    assert {row: set(of_row) for row, of_row in runs.items() if set(of_row) != seeds} == {}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_chose_by_rows_that_are_not_in_the_dev_split(name):
    """The kept epoch is the best on validation rows; on the dev split there is one look at each student."""
    with (CONFIGS / name / "epochs.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    runs = {(line["task"], line["method"], line["seed"]) for line in lines}
    for run in runs:
        of_run = [line for line in lines if (line["task"], line["method"], line["seed"]) == run]
        (kept,) = {line["epoch"] for line in of_run if line["metric"] == "chosen" and line["value"] == "1"}
        looks = {line["epoch"] for line in of_run if (line["model"], line["split"]) == ("student", "dev")}
        assert looks == {kept}
        by_epoch = {}
        for line in of_run:
            if (line["model"], line["split"]) == ("student", "validation"):
                by_epoch.setdefault(int(line["epoch"]), []).append(float(line["value"] or "-inf"))
        means = {epoch: sum(values) / len(values) for epoch, values in by_epoch.items()}
        assert int(kept) == min(epoch for epoch in means if means[epoch] == max(means.values()))
