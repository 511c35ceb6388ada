"""The picture of what a moving teacher's own change is worth, read off its dots."""

import pytest

from reptile_distil.plots.table import TeacherChange, draw_teacher_change, find_teacher_changes, teacher_change_figure
from tests.helpers.records import results_dict

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("matplotlib.image")


def run(method, score, *, teacher=None, task="rte", seed=1, row=None):
    """results.json as far as it is drawn; `teacher`: its dev scores at start and end."""
    results = {
        "task": task,
        "method": method,
        "seed": seed,
        "scores": {"dev": {"accuracy": score}},
        "row": row or method,
    }
    if teacher:
        start, end = ({"dev": {"f1": score - 0.1, "accuracy": score + 0.1}} for score in teacher)
        results["teacher"] = {"scores_at_start": start, "scores_at_end": end}
    return results_dict(**results)


RESULTS = [
    run("teacher", 0.9),
    run("finetune", 0.5),
    run("kd", 0.6, teacher=(0.9, 0.9)),
    run("reptile", 0.55, teacher=(0.9, 0.7)),
    run("reptile", 0.625, teacher=(0.9, 0.925), row="slow"),
    run("metadistil", 0.65, teacher=(0.9, 0.9)),
    run("kd", 0.7, teacher=(0.8, 0.8), seed=2),
    run("reptile", 0.75, teacher=(0.8, 0.75), seed=2),
    run("reptile", 0.1, teacher=(0.3, 0.2), task="cola"),  # without a frozen teacher's run
]


def approx(*values):
    return [pytest.approx(value) for value in values]


def test_each_moving_teacher_is_set_beside_the_frozen_one_of_its_task_and_seed():
    found = find_teacher_changes(RESULTS)
    assert [(of_run.task, of_run.name) for of_run in found] == [("rte", "reptile")] * 2 + [
        ("rte", "metadistil"),
        ("rte", "reptile"),
    ]
    assert [of_run.teacher_change for of_run in found] == approx(-20, 2.5, 0, -5)
    assert [of_run.student_gain for of_run in found] == approx(-5, 2.5, 5, 5)


def test_the_baseline_may_be_another_row():
    found = find_teacher_changes(RESULTS, name=lambda result: result["row"], baseline="slow")
    assert [(of_run.name, of_run.student_gain) for of_run in found if of_run.name == "reptile"] == [
        ("reptile", pytest.approx(-7.5))
    ]


@pytest.mark.parametrize("undefined", ["scores", "teacher"])
def test_an_undefined_score_has_no_dot(undefined):
    bad = run("reptile", 0.5, teacher=(0.9, 0.7))
    scores = bad["scores"] if undefined == "scores" else bad["teacher"]["scores_at_end"]
    scores["dev"]["accuracy"] = None
    assert find_teacher_changes([RESULTS[2], bad]) == []


def test_a_split_that_chose_the_epoch_is_not_the_one_that_is_compared():
    frozen, moving = run("kd", 0.6, teacher=(0.9, 0.9)), run("reptile", 0.5, teacher=(0.9, 0.8))
    teacher = moving["teacher"]
    for scores in (frozen["scores"], moving["scores"], teacher["scores_at_start"], teacher["scores_at_end"]):
        scores |= {"validation": {"accuracy": 0.1}} | {"dev": scores.pop("dev")}
    ((_, _, change, gain),) = find_teacher_changes([frozen, moving])
    assert (change, gain) == (pytest.approx(-10), pytest.approx(-10))


def test_a_panel_for_each_task_and_one_look_for_each_row():
    found = [
        TeacherChange("rte", "reptile", -2, 1),
        TeacherChange("rte", "slow", 0, 0.5),
        TeacherChange("cola", "reptile", -9, -3),
    ]
    figure = teacher_change_figure(found)
    rte, cola = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["rte", "cola"]
    dots = {line.get_label(): line.get_xydata().tolist() for line in rte.lines if line.get_marker() != "None"}
    assert dots == {"reptile": [[-2, 1]], "slow": [[0, 0.5]]}
    assert [line.get_xydata().tolist() for line in cola.lines if line.get_label() == "reptile"] == [[[-9, -3]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["reptile", "slow"]
    assert all("(points)" in label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel()))


def test_many_rows_have_panels_of_ten_at_most():
    figure = teacher_change_figure([TeacherChange("rte", f"r{number}", number, 1) for number in range(16)])
    dots = [[line.get_label() for line in axes.lines if line.get_marker() != "None"] for axes in figure.axes]
    assert dots == [[f"r{number}" for number in range(8)], [f"r{number}" for number in range(8, 16)]]
    shown = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert shown == dots


def test_it_is_written_or_refused(tmp_path):
    path = draw_teacher_change(RESULTS, tmp_path / "teacher-change.png")
    assert matplotlib.image.imread(path).ndim == 3
    with pytest.raises(ValueError, match="moving teacher"):
        draw_teacher_change(RESULTS[:3], tmp_path / "none.png")
