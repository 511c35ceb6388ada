"""Which runs of a table are in which of its pictures; what the pictures hold is tested with what draws them."""

import pytest

from reptile_distil.tables import pictures
from reptile_distil.tables.data import TableData
from reptile_distil.tables.pictures import draw_pictures
from tests.helpers.records import results


@pytest.fixture
def drawn(monkeypatch):
    """What each picture was asked to draw, by the name of the function, with the picture's path."""
    asked = {}

    def record(name):
        def draw(runs, path, **_):
            asked[name] = (runs, path)
            return path

        return draw

    for name in ("draw_table", "draw_score_against_time", "draw_learning_curves", "draw_teacher_change"):
        monkeypatch.setattr(pictures, name, record(name))
    return asked


def table(folder):
    """A teacher, kd and a variant of Reptile with seed 1 on RTE, the teacher's run and two students' there."""
    rows = ("teacher", "kd", "slow")
    keys = [("rte", row, 1) for row in rows]
    methods = {"teacher": "teacher", "kd": "kd", "slow": "reptile"}
    scores = {"dev": {"accuracy": 0.5}}
    teacher = {"scores_at_start": scores, "scores_at_end": scores}
    runs = {key: results(method=methods[key[1]], **{"teacher": teacher} if key[1] != "teacher" else {}) for key in keys}
    return TableData((), rows, (1,), runs, {key: folder / key[1] for key in keys})


def test_all_runs_are_in_scores_time_and_wear_under_their_rows_and_students_alone_in_curves(tmp_path, drawn):
    paths = draw_pictures(table(tmp_path), tmp_path / "out" / "mine")
    assert [path.name for path in paths] == [
        "mine-scores.png",
        "mine-time.png",
        "mine-curves.png",
        "mine-teacher-change.png",
    ]
    assert {path.parent for path in paths} == {tmp_path / "out"}
    for name in ("draw_table", "draw_score_against_time", "draw_teacher_change"):
        assert [(run["row"], run["method"]) for run in drawn[name][0]] == [
            ("teacher", "teacher"),
            ("kd", "kd"),
            ("slow", "reptile"),
        ]
    assert drawn["draw_learning_curves"][0] == [tmp_path / "kd", tmp_path / "slow"]
    assert [path for _, path in drawn.values()] == paths


def test_a_teacher_known_from_its_students_alone_is_left_out(tmp_path, drawn):
    data = table(tmp_path)
    del data.runs["rte", "teacher", 1], data.folders["rte", "teacher", 1]
    data.given_teachers["rte"] = data.runs["rte", "kd", 1].teacher
    draw_pictures(data, tmp_path / "mine")
    assert [run["row"] for run in drawn["draw_table"][0]] == ["kd", "slow"]


def test_a_picture_that_this_table_does_not_have_is_not_left_of_an_earlier_one(tmp_path, drawn):
    data = table(tmp_path)
    for name in ("mine-teacher-change.png", "mine-curves.png", "mine-other.png"):
        (tmp_path / name).write_bytes(b"old")
    del data.runs["rte", "kd", 1], data.folders["rte", "kd", 1]
    draw_pictures(data, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.glob("mine-*.png")) == ["mine-curves.png", "mine-other.png"]


def test_without_a_frozen_teachers_run_nothing_says_what_wear_costs(tmp_path, drawn):
    data = table(tmp_path)
    del data.runs["rte", "kd", 1], data.folders["rte", "kd", 1]
    assert [path.name for path in draw_pictures(data, tmp_path / "mine")][-1] == "mine-curves.png"


def test_teachers_alone_have_no_learning_curves_and_no_run_at_all_no_picture(tmp_path, drawn):
    data = table(tmp_path)
    for row in ("kd", "slow"):
        del data.runs["rte", row, 1], data.folders["rte", row, 1]
    assert len(draw_pictures(data, tmp_path / "mine")) == 2
    del data.runs["rte", "teacher", 1], data.folders["rte", "teacher", 1]
    assert draw_pictures(data, tmp_path / "mine") == []


def test_a_fault_in_one_picture_is_one_line_in_the_log_and_the_others_are_drawn(tmp_path, drawn, monkeypatch, caplog):
    def broken(*_, **__):
        raise ZeroDivisionError("no ink")

    monkeypatch.setattr(pictures, "draw_score_against_time", broken)
    paths = draw_pictures(table(tmp_path), tmp_path / "mine")
    assert [path.name for path in paths] == ["mine-scores.png", "mine-curves.png", "mine-teacher-change.png"]
    (record,) = caplog.records
    assert record.getMessage() == f"{tmp_path}/mine-time.png: could not be drawn: no ink"
