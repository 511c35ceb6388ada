"""What the picture of how runs learn holds, read off its panels' lines and bands."""

import itertools
import json
import math

import numpy as np
import pytest

from reptile_distil import Experiment
from reptile_distil.errors import RunError
from reptile_distil.plots.learning import (
    Run,
    draw_learning_curves,
    learning_curves_figure,
    read_curves,
    read_curves_csv,
)
from reptile_distil.plots.style import STYLES, styles_of
from tests.helpers import records as helper
from tests.helpers.paths import TINY

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("matplotlib.image")


def write_run(folder, method, scores, *, task="rte", seed=1, seconds=10.0, teacher=None, gaps=None):
    """A finished run of one epoch for each score, 100 steps and `seconds` each; `teacher` has one score more."""
    results = {"task": task, "method": method, "seed": seed}
    records = [{"event": "step", "epoch": 1, "step": 50, "loss": 1.0}]
    for number, score in enumerate(scores, start=1):
        values = {"step": 100 * number, "train_seconds": seconds * number, "score": score}
        values |= {"teacher_score": teacher[number]} if teacher else {}
        records.append(helper.epoch_dict(number, **values, last_gap=gaps[number - 1] if gaps else None))
    if teacher:
        results["teacher"] = {"scores_at_start": {"dev": {"f1": teacher[0] - 0.1, "accuracy": teacher[0] + 0.1}}}
    return helper.write_run(folder, helper.results_dict(**results), records)


@pytest.fixture
def folders(tmp_path):
    """Two seeds of reptile, the second slower, one seed of kd and of fine-tuning, and a teacher's own run."""
    return [
        write_run(tmp_path / "reptile-seed1", "reptile", [0.40, 0.50], teacher=[0.8, 0.7, 0.6]),
        write_run(tmp_path / "reptile-seed2", "reptile", [0.44, 0.56], seed=2, seconds=20.0, teacher=[0.8, 0.9, 0.6]),
        write_run(tmp_path / "kd-seed1", "kd", [0.30, 0.35], teacher=[0.8, 0.8, 0.8]),
        write_run(tmp_path / "finetune-seed1", "finetune", [0.20, 0.25]),
        write_run(tmp_path / "teacher-seed1", "teacher", [0.80, 0.85]),
    ]


def draw(folders):
    return learning_curves_figure([read_curves(folder) for folder in folders])


def lines(axes):
    """Label → points."""
    return {line.get_label(): [pytest.approx(point) for point in line.get_xydata().tolist()] for line in axes.lines}


def test_means_over_seeds_stand_against_steps_and_seconds_and_the_teachers_own_from_before_the_first_step(folders):
    by_steps, by_seconds, teacher = draw(folders).axes
    assert lines(by_steps) == {
        "finetune": [[100, 20], [200, 25]],
        "kd": [[100, 30], [200, 35]],
        "reptile": [[100, 42], [200, 53]],
    }
    assert lines(by_seconds)["reptile"] == [[15, 42], [30, 53]]
    assert lines(by_seconds)["kd"] == [[10, 30], [20, 35]]
    assert lines(teacher) == {
        "kd": [[0, 80], [100, 80], [200, 80]],
        "reptile": [[0, 80], [100, 80], [200, 60]],
    }


def test_the_band_is_one_standard_deviation_over_two_seeds_or_more(folders):
    figure = draw(folders)
    (band,) = figure.axes[0].collections
    points = band.get_paths()[0].vertices
    assert points[points[:, 0] == 100][:, 1].min() == pytest.approx(42 - 8**0.5)
    assert points[points[:, 0] == 200][:, 1].max() == pytest.approx(53 + 18**0.5)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["finetune", "kd", "reptile", "± 1 standard deviation over seeds"]


def test_without_a_second_seed_there_is_no_band_and_no_word_of_one(folders):
    figure = draw([folders[0], folders[2]])
    assert [len(axes.collections) for axes in figure.axes] == [0, 0, 0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kd", "reptile"]


def test_each_task_has_its_own_row_of_panels_that_say_what_they_show(folders, tmp_path):
    other = write_run(tmp_path / "cola" / "kd-seed1", "kd", [0.1], task="cola", teacher=[0.3, 0.3])
    figure = draw([*folders, other])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["rte"] * 3 + ["cola"] * 3
    assert [axes.get_xlabel() for axes in figure.axes] == ["steps", "seconds of training", "steps"] * 2
    student, teacher = "student's dev score (%)", "teacher's dev score (%)"
    assert [axes.get_ylabel() for axes in figure.axes] == [student, student, teacher] * 2
    assert lines(figure.axes[3]) == {"kd": [[100, 10]]}
    for axes in figure.axes:  # from 0 on, with room for a whole marker at both ends, also after a single epoch
        (low, high), last = axes.get_xlim(), max(x for line in axes.lines for x, _ in line.get_xydata())
        assert -0.05 * last < low < -0.02 * last < 1.04 * last < high < 1.5 * last


def test_the_gap_has_a_panel_where_a_run_has_one_and_only_the_runs_that_have_it(folders, tmp_path):
    gaps = [[3.0, 2.0], [5.0, 1.0]]
    runs = [
        write_run(
            tmp_path / f"released-seed{seed}", "reptile", [0.4, 0.5], seed=seed, teacher=[0.8, 0.7, 0.6], gaps=gap
        )
        for seed, gap in enumerate(gaps)
    ]
    other = write_run(tmp_path / "cola" / "kd-seed1", "kd", [0.1], task="cola", teacher=[0.3, 0.3])
    axes = draw([*folders, *runs, other]).axes
    assert len(axes) == 8
    assert axes[3].get_ylabel() == r"gap $\|\theta_T - \theta_S'\|$ (no unit)"
    assert lines(axes[3]) == {"released": [[100, 4], [200, 1.5]]}
    assert [[text.get_text() for text in panel.texts] for panel in axes] == [[]] * 7 + [["none"]]


def test_runs_without_any_teacher_have_no_teachers_panel(folders):
    assert len(draw([folders[3]]).axes) == 2


def test_the_mean_ends_where_the_first_seed_ends_and_an_undefined_seed_leaves_a_hole(tmp_path):
    runs = [
        write_run(tmp_path / "kd-seed1", "kd", [0.1, 0.2, 0.3]),
        write_run(tmp_path / "kd-seed2", "kd", [None, 0.4], seed=2),
    ]
    ((_, first), (_, second)) = draw(runs).axes[0].lines[0].get_xydata().tolist()
    assert math.isnan(first)
    assert second == pytest.approx(30)
    assert [text.get_text() for text in draw(runs[1:]).axes[0].texts] == []


def test_a_panel_without_any_defined_score_says_so(tmp_path):
    figure = draw([write_run(tmp_path / "kd-seed1", "kd", [None, None])])
    assert [text.get_text() for text in figure.axes[0].texts] == ["undefined"]


def test_a_run_is_called_by_its_folder_without_the_seed_else_by_its_method_or_as_the_caller_says(tmp_path):
    variant = write_run(tmp_path / "inner-sgd-seed12", "reptile", [0.5], seed=12)
    elsewhere = write_run(tmp_path / "mine", "reptile", [0.5])
    assert [read_curves(folder).name for folder in (variant, elsewhere)] == ["inner-sgd", "reptile"]
    assert read_curves(variant, name=lambda folder, results: f"{results['seed']} {folder.name}").name == (
        "12 inner-sgd-seed12"
    )


def test_runs_are_told_apart_by_colour_marker_and_line_and_a_method_always_looks_the_same():
    names = ["kd", *(f"variant {number}" for number in range(42))]
    looks = styles_of(names)
    assert looks["kd"] == STYLES["kd"]
    assert len({(look.color, look.marker) for look in looks.values()}) == 43
    others = [looks[name] for name in names[1:]]
    for one, next_one in itertools.pairwise(others):
        assert all(a != b for a, b in zip(one, next_one, strict=True))


def test_no_students_run_and_a_folder_without_a_run_are_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="no runs"):
        draw_learning_curves([folders[-1]], tmp_path / "curves.png")
    with pytest.raises(RunError, match=f"^{tmp_path}: holds no finished run to draw"):
        draw_learning_curves([tmp_path], tmp_path / "curves.png")


def test_a_run_as_it_is_written_is_drawn(tmp_path):
    fitted = Experiment.from_yaml(TINY, f"runs_dir={tmp_path}", "method=kd", "train.epochs=1")
    fitted.fit()
    path = draw_learning_curves([fitted.folder.path], tmp_path / "curves.png")
    assert matplotlib.image.imread(path).shape == (408, 1296, 4)
    run = read_curves(fitted.folder.path)
    results = json.loads(fitted.folder.results.read_text())
    assert run.by_steps == [(results["num_steps"], 100 * results["score"])]
    assert run.teacher_by_steps[0] == (0, 100 * np.mean(list(results["teacher"]["scores_at_start"]["dev"].values())))


def test_legends_of_many_names_of_all_lengths_stay_inside_the_picture(tmp_path):
    names = [f"{'long-' * (number % 7)}variant-{number}" for number in range(30)]
    figure = draw([write_run(tmp_path / f"{name}-seed1", "kd", [0.1]) for name in names])
    figure.draw_without_rendering()
    assert figure.legends == []
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend() is not None]
    shown = [text.get_text() for legend in legends for text in legend.get_texts()]
    assert sorted(shown) == sorted(names)
    for legend in (legend.get_window_extent() for legend in legends):
        assert max(axes.bbox.x1 for axes in figure.axes) <= legend.x0 < legend.x1 <= figure.bbox.x1
        assert 0 <= legend.y0 < legend.y1 <= figure.bbox.y1


@pytest.mark.parametrize("num_names", [10, 11, 19, 40])
def test_no_panel_has_more_than_ten_series_and_each_name_is_there_once_but_the_frozen_teachers(tmp_path, num_names):
    names = ["kd", *(f"variant-{number}" for number in range(num_names - 1))]
    runs = [
        write_run(tmp_path / f"{name}-seed{seed}", "kd", [0.1 * seed, 0.3], seed=seed)
        for name in names
        for seed in (1, 2)
    ]
    figure = draw(runs)
    shown = [[line.get_label() for line in axes.lines] for axes in figure.axes[::2]]
    assert max(map(len, shown)) <= 10
    assert max(map(len, shown)) - min(map(len, shown)) <= 1
    assert [group.count("kd") for group in shown] == [1] * len(shown)
    assert sorted(name for group in shown for name in group if name != "kd") == sorted(names[1:])
    assert all(len(axes.collections) == len(axes.lines) for axes in figure.axes)  # a band for each
    assert len({axes.get_ylim() for axes in figure.axes[::2]}) == 1
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()] or figure.legends
    assert all(legend.get_texts()[-1].get_text() == "± 1 standard deviation over seeds" for legend in legends)


CURVES = """task,method,seed,epoch,step,train_seconds,model,split,metric,value
rte,kd,1,0,0,0.0,teacher,validation,f1,0.5
rte,kd,1,0,0,0.0,teacher,validation,accuracy,0.7
rte,kd,1,0,0,0.0,teacher,dev,f1,0.1
rte,kd,1,1,20,1.5,student,validation,f1,0.2
rte,kd,1,1,20,1.5,student,validation,accuracy,0.4
rte,kd,1,1,20,1.5,teacher,validation,f1,
rte,kd,1,1,20,1.5,,,gap,2.5
rte,kd,1,1,20,1.5,,,chosen,1
rte,kd,1,2,40,3.0,student,validation,f1,0.3
rte,kd,1,2,40,3.0,student,validation,accuracy,0.5
rte,kd,1,2,40,3.0,student,dev,accuracy,0.9
rte,finetune,1,1,20,1.0,student,dev,accuracy,0.25
rte,finetune,2,,,,student,dev,accuracy,0.25
"""


def test_curves_are_read_from_the_raw_results_of_a_table(tmp_path):
    (tmp_path / "t-epochs.csv").write_text(CURVES)
    kd, finetune = read_curves_csv(tmp_path / "t-epochs.csv")
    assert (kd.task, kd.name, kd.rows) == ("rte", "kd", "validation")
    assert kd.by_steps == [(20, pytest.approx(30)), (40, pytest.approx(40))]
    assert kd.by_seconds == [(1.5, pytest.approx(30)), (3.0, pytest.approx(40))]
    assert kd.teacher_by_steps[0] == (0, pytest.approx(60))
    assert math.isnan(kd.teacher_by_steps[1][1])
    assert kd.gap_by_steps == [(20, 2.5)]
    assert finetune == Run("rte", "finetune", [(20, 25)], [(1.0, 25)], [], [], "dev")
    assert draw_learning_curves([tmp_path / "t-epochs.csv"], tmp_path / "curves.png").exists()


@pytest.mark.parametrize("text", ["a,b\n1,2\n", CURVES.replace("0.2\n", "x\n")])
def test_a_file_that_holds_no_curves_is_one_sentence(tmp_path, text):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(
        RunError, match=r"bad.csv: is no CSV of a table's epochs: .*; give a table's \.\.\.-epochs.csv$"
    ):
        read_curves_csv(tmp_path / "bad.csv")


def test_panels_say_where_training_rows_chose_the_epoch(folders):
    run = read_curves(folders[2])
    assert run.rows == "dev"
    metrics = folders[2] / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"scores": {"dev"', '"scores": {"validation"'))
    run = read_curves(folders[2])
    assert {axes.get_ylabel() for axes in learning_curves_figure([run]).axes} == {
        "student's validation score (%)",
        "teacher's validation score (%)",
    }
