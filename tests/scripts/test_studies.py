"""Every number in a study's table can be had from the raw results beside it."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from reptile_distil.tables.config import load_table_config
from tests.helpers.paths import CONFIGS
from tests.helpers.studies import (
    HEADROOM,
    audit_lines,
    comparison_lines,
    headroom_lines,
    held_out_lines,
    longer_teacher_lines,
    read_headroom,
    read_runs,
    table_lines,
)

STUDIES = [
    ("minilm/table.yaml", "minilm/epochs.csv"),
    ("minilm/ablation-start.yaml", "minilm/start-epochs.csv"),
    ("minilm/ablation-released.yaml", "minilm/released-epochs.csv"),
    ("minilm/ablation.yaml", "minilm/ablation-epochs.csv"),
    ("minilm/ablation-keep.yaml", "minilm/keep-epochs.csv"),
    ("minilm/ablation-adamw.yaml", "minilm/adamw-epochs.csv"),
    ("minilm/ablation-order.yaml", "minilm/order-epochs.csv"),
    ("evidence/comparison.yaml", "evidence/comparison-epochs.csv"),
    ("toy/ablation.yaml", "toy/epochs.csv"),
    ("toy/ablation-order.yaml", "toy/order-epochs.csv"),
    ("toy/ablation-adamw.yaml", "toy/adamw-epochs.csv"),
    ("toy/methods.yaml", "toy/methods-epochs.csv"),
]


@pytest.mark.parametrize(("config", "raw"), STUDIES)
def test_the_table_of_a_study_is_computed_from_its_raw_results(config, raw):
    table = load_table_config(CONFIGS / config)
    runs = read_runs(CONFIGS / raw)
    tasks = [task.name for task in table.tasks if any(task.name == of_run for of_run, _ in runs)]
    expected = list(table_lines(runs, tasks, table.keys.methods))
    assert len(expected) > 2 + len(tasks)
    readme = (CONFIGS / config).with_name("README.md").read_text(encoding="utf-8")
    assert "\n".join(expected) in readme_tables(readme)


def readme_tables(text):
    """Each table of a Markdown text, whole."""
    return [part.strip() for part in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]


def test_every_table_of_a_studys_readme_is_checked():
    checked = Counter(Path(config).parent for config, _ in STUDIES)
    for folder, count in checked.items():
        tables = readme_tables((CONFIGS / folder / "README.md").read_text(encoding="utf-8"))
        assert len([table for table in tables if table.startswith("| task | method |")]) == count


@pytest.mark.parametrize(("config", "raw"), STUDIES)
def test_a_study_has_every_seed_of_each_row_that_it_shows(config, raw):
    runs = read_runs(CONFIGS / raw)
    seeds = set(load_table_config(CONFIGS / config).seeds)
    assert {row: set(of_row) for row, of_row in runs.items() if set(of_row) != seeds} == {}


@pytest.mark.parametrize("raw", [raw for _, raw in STUDIES])
def test_a_study_chose_by_rows_that_are_not_in_the_dev_split(raw):
    """The kept epoch is the best on validation rows; on the dev split there is one look at each student."""
    with (CONFIGS / raw).open(encoding="utf-8", newline="") as file:
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


def test_the_table_of_the_headroom_is_computed_from_its_raw_results():
    measured = read_headroom(CONFIGS / "evidence/headroom.csv")
    readme = (CONFIGS / "evidence/README.md").read_text(encoding="utf-8")
    assert "\n".join(headroom_lines(measured)) in readme_tables(readme)
    for by_targets in measured.values():
        assert set(by_targets) == set(HEADROOM)
        assert len({of["seeds"] for of in by_targets.values()}) == 1
        for targets, of in by_targets.items():
            if targets != "frozen":
                assert of["difference"] == pytest.approx(of["student"] - by_targets["frozen"]["student"], abs=1e-3)
                assert of["low"] <= of["difference"] <= of["high"]


def test_the_table_of_methods_where_there_is_room_is_computed_from_its_raw_results():
    path = CONFIGS / "evidence/methods-epochs.csv"
    readme = (CONFIGS / "evidence/README.md").read_text(encoding="utf-8")
    runs = read_runs(path, "validation")
    assert "\n".join(held_out_lines(runs)) in readme_tables(readme)
    with path.open(encoding="utf-8", newline="") as file:
        assert {line["split"] for line in csv.DictReader(file)} == {"", "validation"}
    assert {row for _, row in runs} <= set(load_table_config(CONFIGS / "evidence/methods.yaml").rows)


def test_the_table_of_ten_epochs_is_computed_from_its_raw_results():
    readme = (CONFIGS / "evidence/README.md").read_text(encoding="utf-8")
    runs = read_runs(CONFIGS / "evidence/long-epochs.csv", "validation")
    assert "\n".join(held_out_lines(runs)) in readme_tables(readme)
    assert {run["steps"] for (_, method), of in runs.items() if method == "cotrain" for run in of.values()} == {
        480,
        640,
    }


def test_the_table_of_the_longer_trained_teachers_is_computed_from_its_raw_results():
    readme = (CONFIGS / "evidence/README.md").read_text(encoding="utf-8")
    runs, longer = (
        read_runs(CONFIGS / f"evidence/{name}-epochs.csv", "validation") for name in ("methods", "longer-teacher")
    )
    lines = list(longer_teacher_lines(runs, longer))
    assert len(lines) > 2
    assert "\n".join(lines) in readme_tables(readme)


def test_the_table_of_the_audits_is_computed_from_its_raw_results():
    readme = (CONFIGS / "evidence/README.md").read_text(encoding="utf-8")
    assert "\n".join(audit_lines(CONFIGS / "evidence/audit.csv")) in readme_tables(readme)


def test_the_verdict_of_the_comparison_is_that_of_its_rule():
    comparison = load_table_config(CONFIGS / "evidence/comparison.yaml")
    runs = read_runs(CONFIGS / "evidence/comparison-epochs.csv")
    readme = (CONFIGS / "evidence/README.md").read_text(encoding="utf-8")
    told = "\n".join(f"- {line}" for line in comparison_lines(runs, list(dict.fromkeys(task for task, _ in runs))))
    assert f"\n{told}\n" in readme
    assert told.count("n 20") == 2
    assert {method for _, method in runs} == {"teacher", *comparison.keys.methods}


@pytest.mark.parametrize(
    ("over_kd", "over_bar", "num_tasks", "verdict"),
    [
        ([3.0, 3.2], [1.4, 1.6], 4, "yes"),
        ([0.2, 0.4], [-1.0, 0.2], 4, "no"),
        ([0.2, 0.4], [-1.0, 0.2], 3, "neither"),
        ([0.2, 2.4], [-1.0, 0.2], 4, "neither"),
        ([3.0, 3.2], [-2.9, 5.0], 4, "neither"),
        ([1.5, 1.7], [0.6, 0.8], 4, "neither"),
    ],
)
def test_a_comparison_is_decided_by_its_rule(over_kd, over_bar, num_tasks, verdict):
    tasks = [f"task{number}" for number in range(num_tasks)]
    runs = {}
    for task in tasks:
        for method, gains in (("cotrain", [0.0, 0.0]), ("kd", over_kd), ("kd-longer", over_bar)):
            runs[task, method] = {seed: {"student": 80.0 - gains[seed % 2]} for seed in range(4)}
    assert list(comparison_lines(runs, tasks))[-1] == f"Verdict: **{verdict}**"


def test_the_comparison_takes_seeds_that_nothing_was_chosen_by():
    comparison = load_table_config(CONFIGS / "evidence/comparison.yaml")
    seeds = set(comparison.seeds)
    assert len(seeds) == 5
    for name in ("headroom.csv", "methods-epochs.csv"):
        with (CONFIGS / "evidence" / name).open(encoding="utf-8", newline="") as file:
            assert not seeds & {int(line["seed"]) for line in csv.DictReader(file) if line["seed"] != "all"}
    assert set(comparison.keys.methods) <= set(load_table_config(CONFIGS / "evidence/methods.yaml").keys.methods)
