"""What the students of each kind of targets learn from: all equal runs that are configured by hand."""

import csv
import dataclasses
import io
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch

from reptile_distil import Experiment
from reptile_distil.audit import headroom_table
from reptile_distil.audit.headroom import Headroom, HeadroomSettings, Point, check_headroom, label_logits, spread
from reptile_distil.audit.headroom_table import HeadroomTable
from reptile_distil.config.config import load_config
from reptile_distil.config.data_section import TransferConfig
from reptile_distil.errors import ConfigError, DataError, DivergedError, RunError
from reptile_distil.models.classifier import mean_logits
from reptile_distil.tables.config import load_table_config
from tests.helpers.paths import TINY, TINY_TABLE

FEW = HeadroomSettings(times=2, num_teachers=2, num_points=2)
OPTIONS = (
    "task=toy-regression",
    "method=kd",
    "data.validation_fraction=0.3",
    "data.transfer.labelled_rows=14",
    "train.epochs=9",
    "train.max_steps=4",
    "data.cache_dir=false",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def headroom_of(runs):
    def headroom_of(*overrides):
        headroom = Headroom(load_config(TINY, [*OPTIONS, f"runs_dir={runs}", *overrides]), FEW)
        headroom.fit_teacher()
        return headroom

    return headroom_of


def test_each_student_is_that_of_a_run_configured_by_hand(headroom_of, runs, tmp_path):
    frozen, second, informed = (
        runs / of / "toy-regression" / f"teacher-seed{seed}" / "model"
        for of, seed in (("", 42), ("", 43), ("labels-times-2", 42))
    )
    by_hand = {
        "frozen": [f"teacher.finetuned={frozen}"],
        "labels": ["method=finetune", f"teacher.finetuned={frozen}"],
        "averaged": [f"teachers=[{frozen},{second}]"],
        "more_labels": [f"teacher.finetuned={informed}"],
    }
    headroom = headroom_of()
    assert headroom.targets == ("frozen", "labels", "averaged", "more_labels", "oracle")
    ends = {}
    for targets, overrides in by_hand.items():
        measured = headroom.measure(targets)
        assert [point.step for point in measured.points] == [2, 4]
        run = Experiment(load_config(TINY, [*OPTIONS, f"runs_dir={tmp_path / targets}", *overrides]))
        run.fit()
        last = run.history.iloc[-1]
        ends[targets] = measured.points[-1].scores
        assert ends[targets] == {name: last[f"validation_{name}"] for name in ("pearson", "spearmanr")}
        of_teacher = None if targets == "labels" else measured.teacher_scores["pearson"]
        assert of_teacher == last.get("teacher_validation_pearson")
    assert len({scores["pearson"] for scores in ends.values()}) == 4


def test_the_better_informed_teacher_has_learned_from_other_rows(headroom_of):
    headroom = headroom_of()
    few = headroom.experiment.setup.prepare_teacher().data["train"].features
    components, _ = headroom.prepare("more_labels")
    many = headroom._with_more_labels(14).setup.prepare_teacher().data["train"].features
    assert (len(few), len(many)) == (14, 28)
    assert not set(few.row_ids) & set(many.row_ids)
    assert set(few.row_ids) == set(components.data["train"].features.labelled.row_ids)


@pytest.mark.parametrize("ratio", [0, 1])
def test_an_oracle_knows_every_label_and_the_others_none_that_is_hidden(headroom_of, monkeypatch, ratio):
    headroom = headroom_of("task=toy-threeway", f"data.transfer.ratio={ratio}", "loss.temperature=2")
    of_frozen, of_oracle = (headroom.prepare(targets)[0].data["train"] for targets in ("frozen", "oracle"))
    every = dict(zip(*_all_rows(headroom), strict=True))
    rows = of_oracle.features
    assert (rows.is_labelled is None) == (ratio == 0)
    assert len(rows) == (14 if ratio == 0 else 49)
    teacher, oracle = (torch.softmax(torch.tensor(of.teacher_logits) / 2, 1) for of in (of_frozen, of_oracle))
    true = torch.eye(3)[[every[row] for row in rows.row_ids]]
    torch.testing.assert_close(oracle, (teacher + true) / 2, atol=1e-6, rtol=0)
    for train in (of_frozen, of_oracle):
        hidden = np.flatnonzero(~train.features.is_labelled) if ratio else np.empty(0, int)
        given = train.batch(hidden) if ratio else {}
        assert set(given.get("labels", torch.tensor([-1])).tolist()) == {-1}
        assert not given.get("task_weights", torch.zeros(1)).any()


def _all_rows(headroom):
    config = headroom.config.with_values(data={"transfer": TransferConfig()})
    features = Experiment(config).setup.prepare_teacher().data["train"].features
    return features.row_ids.tolist(), features.labels.tolist()


def test_without_hidden_labels_there_is_no_better_informed_teacher():
    config = load_config(TINY, [*OPTIONS, "data.transfer.labelled_rows=null"])
    assert Headroom(config, FEW).targets == ("frozen", "labels", "averaged", "oracle")


def test_labels_as_logits_mixed_with_a_teachers():
    like = np.array([[0.5, -1.0, 2.0], [1.0, 0.0, 0.0]], np.float32)
    classes = label_logits(np.array([1, -1]), like)
    np.testing.assert_array_equal(classes, [[-np.inf, 0, -np.inf], like[1]])
    both = mean_logits(torch.tensor(np.stack([like, classes])), temperature=3.0)
    expected = (torch.softmax(torch.tensor(like[0]) / 3, 0) + torch.tensor([0.0, 1.0, 0.0])) / 2
    torch.testing.assert_close(torch.softmax(both[0] / 3, 0), expected)
    torch.testing.assert_close(torch.softmax(both[1] / 3, 0), torch.softmax(torch.tensor(like[1]) / 3, 0))

    sets = label_logits(np.array([[1.0, 0.0, 1.0], [np.nan] * 3]), like)
    np.testing.assert_array_equal(sets, [[np.inf, -np.inf, np.inf], like[1]])
    both = mean_logits(torch.tensor(np.stack([like, sets])), temperature=3.0, multi_label=True)
    expected = (torch.sigmoid(torch.tensor(like[0]) / 3) + torch.tensor([1.0, 0.0, 1.0])) / 2
    torch.testing.assert_close(torch.sigmoid(both[0] / 3), expected)

    one_label = label_logits(np.array([[1.0], [0.0]]), like[:, :1])
    both = mean_logits(torch.tensor(np.stack([like[:, :1], one_label])), temperature=1.0, multi_label=True)
    expected = (torch.sigmoid(torch.tensor(like[:, :1])) + torch.tensor([[1.0], [0.0]])) / 2
    torch.testing.assert_close(torch.sigmoid(both), expected)

    values = label_logits(np.array([2.5, np.nan]), like[:, :1])
    np.testing.assert_array_equal(values, [[2.5], [1.0]])


def test_points_end_at_the_last_step():
    assert spread(10, 4) == [3, 5, 8, 10]
    assert spread(3, 5) == [1, 2, 3]


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        (("method=reptile",), {}, "method = 'reptile': headroom is that of kd"),
        (("output_dir=x",), {}, "output_dir has no effect on headroom"),
        (("data.validation_fraction=null",), {}, "data.validation_fraction is not set: .* never on the dev split"),
        (("teacher.finetuned=x",), {}, "teacher.finetuned: headroom fine-tunes its teachers itself"),
        (("teachers=[x]",), {}, "teachers: headroom fine-tunes"),
        (("loss.hidden=1",), {}, "loss.hidden: an oracle has logits alone"),
        (("loss.extra_rows=1",), {}, "loss.extra_rows: .* leave it out"),
        (("compute.cuda_graphs=true",), {}, "compute.cuda_graphs: .* plain steps of one process"),
        (("train.patience=1",), {}, "train.patience: all students take the same number of steps"),
        ((f"seed={2**63 - 2}",), {"num_teachers": 3}, "the averaged teachers have the next seeds"),
        (("loss.alpha=0", "data.transfer.labelled_rows=null"), {}, "loss.alpha = 0 leaves the targets out"),
        ((), {"times": 1}, "--times 1: expected at least 2"),
        ((), {"num_teachers": 1}, "--teachers 1: expected at least 2"),
        ((), {"num_points": 0}, "--points 0: expected at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(overrides, settings, message):
    with pytest.raises(ConfigError, match=message):
        check_headroom(load_config(TINY, [*OPTIONS, *overrides]), FEW._replace(**settings))


TABLE = (*OPTIONS[2:], "methods=[kd]", "tasks=[toy-sentence]", "seeds=[1,2]")


def table_of(runs, *overrides):
    return HeadroomTable.of_table(load_table_config(TINY_TABLE, [*TABLE, f"runs_dir={runs}", *overrides]), FEW)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A table of two seeds, measured, its folder, and how many lines its CSV had after each student."""
    folder, lines = tmp_path_factory.mktemp("table"), []
    table = table_of(folder)
    table.run(lambda: lines.append(table.to_csv().count("\n")))
    return table, folder, lines


def test_a_table_is_measured_once_and_all_of_it_is_written(measured):
    table, folder, num_lines = measured
    assert num_lines == sorted(set(num_lines))
    assert len(num_lines) == 10
    again = table_of(folder)
    again.run(lambda: pytest.fail("measured again"))
    assert again.to_csv() == table.to_csv()
    assert again.to_markdown() == table.to_markdown()

    lines = list(csv.DictReader(io.StringIO(table.to_csv())))
    rows = {line["targets"]: (line["labelled_rows"], line["transfer_rows"]) for line in lines}
    assert rows == {**dict.fromkeys(rows, ("14", "35")), "labels": ("14", "0")}
    for room in table.rooms():
        of_students = [
            float(line["value"])
            for line in lines
            if (line["targets"], line["model"], line["step"]) == (room.targets, "student", "4")
        ]
        assert len(of_students) == 2
        assert room.student == pytest.approx(np.mean(of_students), abs=1e-6)


def test_a_room_is_the_difference_from_the_frozen_teachers_students_on_the_same_rows(measured):
    by_targets = {room.targets: room for room in measured[0].rooms()}
    frozen = by_targets.pop("frozen")
    assert (frozen.difference, frozen.low) == (None, None)
    for room in by_targets.values():
        assert room.difference == pytest.approx(room.student - frozen.student)
        assert room.low <= room.difference <= room.high
    lines = list(csv.DictReader(io.StringIO(measured[0].to_csv(with_differences=True))))
    written = {
        (line["targets"], line["metric"]): float(line["value"]) for line in lines if line["model"].endswith("frozen")
    }
    assert len(written) == 12
    for (targets, name), value in written.items():
        assert value == pytest.approx(getattr(by_targets[targets], name), abs=1e-6)


def two_rows(measured, of_second_row):
    """The table with a second row, whose students are made of the first one's, seed by seed."""
    table = dataclasses.replace(measured[0], measured=dict(measured[0].measured))
    for (task, row, seed), students in measured[0].measured.items():
        table.measured[task, f"more-{row}", seed] = {"frozen": of_second_row(students)}
    return table


def test_a_rows_gain_is_the_difference_of_the_frozen_teachers_students_of_two_rows(measured):
    """The second row's students know all answers but that of the first text."""

    def know(students):
        right = students["frozen"].references
        wrong_once = np.concatenate([1 - right[:1], right[1:]])
        return dataclasses.replace(students["frozen"], predictions=wrong_once)

    table = two_rows(measured, know)
    (gain,) = table.gains()
    by_row = {room.row: room.student for room in table.rooms() if room.targets == "frozen"}
    num_rows = len(table.measured["toy-sentence", "kd", 1]["frozen"].references)
    assert gain[:4] == ("toy-sentence", "more-kd", "kd", (1, 2))
    assert gain.difference == pytest.approx(1 - 1 / num_rows - by_row["kd"])
    assert gain.low < gain.difference < gain.high
    last = _squeezed(table.to_markdown()).splitlines()[-1]
    assert last.startswith("| toy-sentence | more-kd | kd | 2 | ")
    assert f"{100 * gain.difference:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]" in last
    written = list(csv.DictReader(io.StringIO(table.to_csv(with_differences=True))))
    of_gain = {line["metric"]: float(line["value"]) for line in written if line["model"] == "student minus kd"}
    assert of_gain == pytest.approx({"difference": gain.difference, "low": gain.low, "high": gain.high}, abs=1e-6)
    assert {line["seed"] for line in written if line["model"] == "student minus kd"} == {"1 2"}


def test_rows_that_are_scored_on_other_texts_are_not_compared(measured):
    table = two_rows(
        measured,
        lambda students: dataclasses.replace(students["frozen"], references=students["frozen"].references[::-1]),
    )
    assert table.gains() == []
    assert measured[0].gains() == []
    assert "minus row" not in table.to_markdown()


def test_an_interval_is_of_pairs_of_rows(measured):
    """Students that say the same of every row differ by nothing, however the rows are drawn."""
    table = dataclasses.replace(measured[0], measured=dict(measured[0].measured))
    for key, students in table.measured.items():
        table.measured[key] = {**students, "oracle": dataclasses.replace(students["frozen"], targets="oracle")}
    room = next(room for room in table.rooms() if room.targets == "oracle")
    assert (room.difference, room.low, room.high) == (0.0, 0.0, 0.0)


def test_an_undefined_score_is_no_number(measured, monkeypatch):
    """A student that says one number for every row has no correlation."""
    monkeypatch.setattr(headroom_table, "NUM_RESAMPLES", 10)
    table = dataclasses.replace(measured[0], measured=dict(measured[0].measured))
    correlated = dataclasses.replace(table.cells[0].task, label_names=(), metrics=("pearson", "spearmanr"))
    table.cells = [dataclasses.replace(cell, task=correlated) for cell in table.cells]
    for key, students in table.measured.items():
        flat = {
            targets: dataclasses.replace(
                student,
                predictions=np.full(len(student.references), 0.5),
                references=np.arange(len(student.references)) / 7,
                teacher_scores=None,
                points=(Point(4, 0.1, {"pearson": math.nan, "spearmanr": math.nan}),),
            )
            for targets, student in students.items()
        }
        table.measured[key] = flat
    assert {tuple(room[4:]) for room in table.rooms()} == {(None,) * 5}
    assert all(line.endswith("| - | - | - |") for line in _squeezed(table.to_markdown()).splitlines()[2:])

    with_gain = two_rows([table], lambda students: students["frozen"])
    assert [tuple(gain[4:]) for gain in with_gain.gains()] == [(None,) * 3]
    assert _squeezed(with_gain.to_markdown()).endswith("| toy-sentence | more-kd | kd | 2 | - |")
    written = csv.DictReader(io.StringIO(with_gain.to_csv(with_differences=True)))
    assert not [line for line in written if "minus" in line["model"]]


def _squeezed(text):
    return re.sub(" +", " ", text)


ALL = {"frozen", "labels", "averaged", "more_labels", "oracle"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_was_measured_on_other_rows_is_measured_again(measured, tmp_path, monkeypatch, caplog, overwrite):
    table, measuring = copy_of(measured, tmp_path), measured_by_nobody(measured, monkeypatch)
    path = next(table.output.glob("*seed2-oracle.json"))
    kept = json.loads(path.read_text())
    changed = {**kept["identity"], "inputs": {**kept["identity"]["inputs"], "teacher": "another"}}
    path.write_text(json.dumps({**kept, "identity": changed}))
    table.run(lambda: None, overwrite=overwrite)
    assert measuring == ["oracle"]
    assert sum("measured again" in message for message in caplog.messages) == 1
    assert json.loads(path.read_text()) == kept


@pytest.mark.parametrize(
    ("overrides", "settings", "difference", "concerned"),
    [
        ((), {"num_points": 3}, "--points = 2, not 3", ALL),
        ((), {"num_teachers": 3}, "--teachers = 2, not 3", {"averaged"}),
        ((), {"times": 3}, "--times = 2, not 3", {"more_labels"}),
        (
            ["train.lr=2e-3"],
            {},
            "train.lr = 0.001, not 0.002",
            ALL,
        ),
    ],
)
def test_what_was_measured_with_other_settings_is_refused_unless_it_is_overwritten(
    measured, tmp_path, monkeypatch, overrides, settings, difference, concerned
):
    monkeypatch.setattr(Headroom, "lack_of_rows", lambda self: "")
    measuring = measured_by_nobody(measured, monkeypatch)
    table = copy_of(measured, tmp_path, *overrides, settings=FEW._replace(**settings))
    before = contents(table.output)
    with pytest.raises(RunError, match=rf"\.json: holds a student with {difference}; .* again with --overwrite$"):
        table.run(lambda: None)
    assert (measuring, contents(table.output)) == ([], before)
    table.run(lambda: None, overwrite=True)
    assert (table.failures, set(measuring)) == ({}, concerned)
    again = copy_of(measured, tmp_path / "none", *overrides, settings=table.settings)
    again.output = table.output
    again.run(lambda: pytest.fail("measured again"))


def test_another_setting_of_the_last_cell_is_said_before_the_first_is_measured(measured, tmp_path, monkeypatch):
    measuring = measured_by_nobody(measured, monkeypatch)
    table = copy_of(measured, tmp_path, "seeds=[1,2]", "train.lr=2e-3")
    for path in table.output.glob("*seed1-*.json"):
        path.unlink()
    with pytest.raises(RunError, match=r"seed2-frozen\.json: holds a student"):
        table.run(lambda: None)
    assert measuring == []


def test_a_file_that_has_all_options_is_read(measured, tmp_path):
    """As files once had, whatever the targets: what does not matter to them may differ."""
    table = copy_of(measured, tmp_path)
    for path in table.output.glob("*.json"):
        kept = json.loads(path.read_text())
        settings = {"times": 9, "num_teachers": 9, **kept["identity"]["settings"]}
        path.write_text(json.dumps({**kept, "identity": {**kept["identity"], "settings": settings}}))
    table.run(lambda: pytest.fail("measured again"))
    assert len(table.measured["toy-sentence", "kd", 2]) == 5


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"points": []}, "points: expected at least one"),
        ({"points": [Point(step, 0.1, {"accuracy": 0.5})._asdict() for step in (4, 2)]}, "ascending steps"),
        ({"points": [Point(4, 0.1, {})._asdict()]}, "scores: expected a number"),
        ({"teacher_scores": {"accuracy": "high"}}, "scores: expected a number"),
        ({"predictions": [0, 1]}, "predictions and references: expected one of each"),
        ({"predictions": [], "references": []}, "predictions and references: expected one of each"),
        ({"predictions": ["a"], "references": ["b"]}, "predictions and references: expected numbers"),
    ],
)
def test_a_damaged_file_is_measured_again(measured, tmp_path, monkeypatch, caplog, damage, reason):
    table, measuring = copy_of(measured, tmp_path), measured_by_nobody(measured, monkeypatch)
    path = next(table.output.glob("*seed2-oracle.json"))
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "measured": {**kept["measured"], **damage}}))
    table.run(lambda: None)
    assert measuring == ["oracle"]
    (said,) = [message for message in caplog.messages if "measured again" in message]
    assert re.search(rf"oracle\.json cannot be read \(.*{reason}", said)
    assert json.loads(path.read_text())["measured"] == kept["measured"]


def copy_of(measured, folder, *overrides, settings=FEW):
    """A table of seed 2 whose folder is a copy of the measured one."""
    shutil.copytree(measured[1], folder, dirs_exist_ok=True)
    overrides = [*TABLE, "seeds=[2]", f"runs_dir={folder}", *overrides]
    return HeadroomTable.of_table(load_table_config(TINY_TABLE, overrides), settings)


def measured_by_nobody(measured, monkeypatch):
    """From now on students are those of seed 2, untrained; the targets of which they were asked for."""
    again, asked = measured[0].measured["toy-sentence", "kd", 2], []
    monkeypatch.setattr(Headroom, "measure", lambda self, targets: asked.append(targets) or again[targets])
    return asked


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_task_that_fails_does_not_stop_the_others(measured, tmp_path, monkeypatch):
    table = table_of(tmp_path, "tasks=[toy-sentence,toy-pair]", "seeds=[1]")
    (tmp_path / "toy-sentence").write_text("no folder")
    of_seed = measured[0].measured["toy-sentence", "kd", 1]
    monkeypatch.setattr(Headroom, "fit_teacher", lambda self: _refuse_files(self.experiment.teacher_folder.path))
    monkeypatch.setattr(Headroom, "measure", lambda self, targets: of_seed[targets])
    table.run(lambda: None)
    assert table.failures == {"toy-sentence kd seed1": "no folder"}
    assert {room.task for room in table.rooms()} == {"toy-pair"}


def test_one_kind_of_targets_that_fails_does_not_stop_the_next(measured, monkeypatch):
    _, folder, _ = measured
    table = table_of(folder, "seeds=[1]")
    next(table.output.glob("*seed1-averaged.json")).unlink()
    monkeypatch.setattr(Headroom, "measure", lambda self, targets: _diverge())
    table.run(lambda: None)
    assert table.failures == {"toy-sentence kd seed1, averaged": "diverged"}
    assert [room.targets for room in table.rooms()] == ["frozen", "labels", "more_labels", "oracle"]
    assert table.to_markdown().endswith("\n\nNot measured:\n\n- toy-sentence kd seed1, averaged: diverged")


def test_a_mean_says_how_many_of_the_seeds_it_is_of(measured):
    """Of two seeds one has no student of the oracle, of two rows one has no frozen teacher for a seed."""
    one, two = (dict(students) for students in measured[0].measured.values())
    del two["oracle"]
    table = dataclasses.replace(
        measured[0], measured=dict(zip(measured[0].measured, (one, two), strict=True)), failures={"a cell": "why"}
    )
    assert {room.targets: room.seeds for room in table.rooms()}["oracle"] == (1,)
    seeds = {line.split("|")[3].strip(): line.split("|")[4].strip() for line in table.to_markdown().splitlines()[2:7]}
    assert seeds.pop("frozen teacher and true labels averaged") == "1 of 2"
    assert set(seeds.values()) == {"2"}
    written = list(csv.DictReader(io.StringIO(table.to_csv(with_differences=True))))
    of_means = {line["targets"]: line["seed"] for line in written if line["model"] == "student minus frozen"}
    assert of_means == {"labels": "all", "averaged": "all", "more_labels": "all", "oracle": "1"}
    alone = dataclasses.replace(measured[0], measured={next(iter(measured[0].measured)): one})
    assert {room.seeds for room in alone.rooms()} == {(1,)}
    assert alone.to_markdown().count("| 1 of 2 |") == 5
    without_frozen = {name: student for name, student in two.items() if name != "frozen"}
    table = dataclasses.replace(
        measured[0], measured={**measured[0].measured, ("toy-sentence", "kd", 2): without_frozen}
    )
    assert {room.seeds for room in table.rooms()} == {(1,)}


def test_a_fault_of_a_single_run_is_raised(tmp_path):
    config = load_config(TINY, [*OPTIONS, f"runs_dir={tmp_path}"])
    table = HeadroomTable.of_run(config, FEW._replace(times=8))
    with pytest.raises(DataError, match="--times 8: 14 labels"):
        table.run(lambda: None)


def _refuse_files(folder):
    if folder.parent.is_file():
        raise RunError("no folder")


def _diverge():
    raise DivergedError("diverged")


def test_a_student_that_diverges_is_said(headroom_of):
    headroom = headroom_of("train.lr=1e20")
    with pytest.raises(DivergedError, match=r"the student of frozen on toy-regression: step \d: loss is (nan|inf)"):
        headroom.measure("frozen")


def test_too_few_rows_for_more_labels_are_said_before_any_teacher_is_trained(tmp_path):
    config = load_config(TINY, [*OPTIONS, f"runs_dir={tmp_path}"])
    with pytest.raises(DataError, match=r"--times 8: 14 labels, .* take 126 training rows, but there are 49"):
        Headroom(config, FEW._replace(times=8)).fit_teacher()
    assert not list(tmp_path.iterdir())


def test_a_regression_without_a_distillation_term_has_nothing_to_compare():
    config = load_config(TINY, [*OPTIONS, "loss.regression=none", "data.transfer.labelled_rows=null"])
    with pytest.raises(ConfigError, match=r"loss.regression = none: the targets have no part"):
        Headroom(config, FEW)


def test_too_few_rows_of_the_last_cell_are_said_before_the_first_is_measured(tmp_path):
    table = table_of(tmp_path, "tasks=[toy-sentence,toy-pair]", "per_task.toy-pair.data.transfer.labelled_rows=30")
    with pytest.raises(DataError, match=r"^toy-pair kd seed1: --times 2: 30 labels"):
        table.run(lambda: pytest.fail("measured"))
    assert not list(tmp_path.iterdir())


def test_each_warning_of_the_rows_is_said_once(tmp_path, caplog):
    """Of 60 rows every text stands there three times, so that the held-out ones are trained on too."""
    lines = [json.dumps({"text": f"film {n}", "label": n % 2}) for n in range(20)] * 3
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    own = "name: own, text: [text], label: label, labels: ['0', '1'], metrics: [accuracy]"
    task = f"task={{{own}, files: {{train: train.jsonl}}}}"
    rows = (f"data.path={tmp_path}", "data.max_train_rows=null")
    options = (task, *rows, "teacher.train.epochs=1", "train.max_steps=2", f"runs_dir={tmp_path}/runs")
    HeadroomTable.of_run(load_config(TINY, [*OPTIONS, *options]), FEW).run(lambda: None)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    (unseen,) = [line for line in said if "unseen" in line]
    assert re.fullmatch(
        r"\d+ of the 18 rows of validation are in the training rows too, .*: keep each text once", unseen
    )
    assert len(said) == len(set(said))


def test_a_table_without_a_student_of_kd_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"methods has no student: .* give methods=\[kd\]"):
        table_of(tmp_path, "methods=[teacher]")


def test_students_that_would_have_the_same_files_are_refused(tmp_path):
    own = "text: [text], label: label, labels: ['0', '1'], metrics: [accuracy], files: {train: t.tsv, dev: d.tsv}"
    tasks = f"tasks=[{{name: a, {own}}}, {{name: a-b, {own}}}]"
    rows = ("methods=[b-c,c]", "variants={b-c: {method: kd}, c: {method: kd}}")
    with pytest.raises(ConfigError, match=r"^task a with row b-c and task a-b with row c .*, a-b-c-seed1-\*\.json"):
        table_of(tmp_path, tasks, *rows)


def test_a_search_is_refused(tmp_path):
    search = "search={keys: {train.lr: {low: 1e-5, high: 1e-4}}, trials: 2}"
    with pytest.raises(ConfigError, match="search has no effect on headroom"):
        table_of(tmp_path, search)


def test_another_engine_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="engine slurm has no effect on headroom"):
        table_of(tmp_path, "engine.name=slurm")


def test_other_methods_have_no_headroom(tmp_path):
    with pytest.raises(ConfigError, match=r"method = 'finetune': headroom is that of kd"):
        table_of(tmp_path, "methods=[finetune,kd]")
