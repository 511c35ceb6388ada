"""What the pictures hold, read off the figures' own lines, bars and labels."""

import itertools
import json
import math
import warnings

import numpy as np
import pytest

from reptile_distil import Experiment
from reptile_distil.errors import MissingExtraError, RunError
from reptile_distil.experiments import run as run_module
from reptile_distil.plots import run as run_plots
from reptile_distil.plots import table as table_plots
from tests.helpers import records as helper
from tests.helpers.paths import TINY

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("matplotlib.image")

RESULTS = {
    "task": "mrpc",
    "method": "reptile",
    "seed": 7,
    "best_epoch": 2,
    "teacher": {"scores_at_start": {"dev": {"f1": 0.9, "accuracy": 0.86}}},
}


def curves(results, records):
    """The figure of a run, of whose results.json only what is drawn is stated."""
    return run_plots.curves_figure(helper.results(**results), helper.metrics(records))


def epoch(number, *, f1, accuracy, **more):
    scores = {"dev": {"f1": f1, "accuracy": accuracy}}
    train = {"loss": 1.0 / number, "task_loss": 2.0 / number, "distillation_loss": 3.0 / number}
    return helper.epoch_dict(number, step=100 * number, train=train, scores=scores, **more)


def step(number, **values):
    return {"event": "step", "epoch": 1, "step": number, "loss": number / 100, "lr": 1e-4, **values}


def reptile_records():
    teacher = [{"dev": {"f1": 0.8, "accuracy": 0.76}}, {"dev": {"f1": 0.7, "accuracy": 0.66}}]
    moved = [
        {"teacher_scores": teacher[0], "agreement": 0.5, "last_gap": 6.0, "teacher_drift": 0.1},
        {"teacher_scores": teacher[1], "agreement": 0.75, "last_gap": 5.0, "teacher_drift": 0.2},
    ]
    return [
        step(50, gap=7.0, teacher_lr=2e-4),
        epoch(1, f1=0.5, accuracy=0.6, **moved[0]),
        step(150, gap=5.5, teacher_lr=1e-4),
        epoch(2, f1=0.55, accuracy=0.65, **moved[1]),
    ]


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def lines(axes):
    """Label → list of (x, y)."""
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def close(points):
    return [pytest.approx(point) for point in points]


def test_a_reptile_run_has_all_six_panels_with_their_series():
    found = panels(curves(RESULTS, reptile_records()))
    score, loss, rate, agreement, gap, drift = found.values()
    assert [title.split()[0] for title in found] == ["Dev", "Training", "Learning", "Agreement", "Gap", "Teacher"]
    drawn = lines(score)
    assert drawn.pop("best epoch") == [[2, 0], [2, 1]]
    assert drawn == {
        "student, f1": close([[1, 50], [2, 55]]),
        "student, accuracy": close([[1, 60], [2, 65]]),
        "teacher, f1": close([[0, 90], [1, 80], [2, 70]]),
        "teacher, accuracy": close([[0, 86], [1, 76], [2, 66]]),
    }
    assert lines(loss) == {
        "single steps": close([[0.5, 0.5], [1.5, 1.5]]),
        "mean of epoch": close([[0.5, 1], [1.5, 0.5]]),
        "task part": close([[0.5, 2], [1.5, 1]]),
        "distillation part": close([[0.5, 3], [1.5, 1.5]]),
    }
    assert lines(rate) == {
        "student": close([[0.5, 1e-4], [1.5, 1e-4]]),
        "teacher (μ)": close([[0.5, 2e-4], [1.5, 1e-4]]),
    }
    assert [axes.lines[0].get_xydata().tolist() for axes in (agreement, gap, drift)] == [
        [[1, 50], [2, 75]],
        [[0.5, 7.0], [1.5, 5.5]],
        [[0, 0], [1, 0.1], [2, 0.2]],
    ]


def test_every_panel_says_what_its_axes_are():
    figure = curves(RESULTS, reptile_records())
    assert figure.get_suptitle() == "mrpc: reptile, seed 7"
    for title, axes in panels(figure).items():
        assert title
        assert axes.get_xlabel() == "epoch"
        assert axes.get_ylabel().endswith(("(%)", "(no unit)"))
        labels = [label for label in lines(axes) if not label.startswith("_")]
        legend = axes.get_legend()
        assert [text.get_text() for text in legend.get_texts()] == labels if len(labels) > 1 else legend is None


def test_student_and_teacher_differ_in_colour_and_marker_and_two_metrics_in_line_style():
    score = panels(curves(RESULTS, reptile_records()))["Dev score"]
    looks = {line.get_label(): (line.get_color(), line.get_marker(), line.get_linestyle()) for line in score.lines}
    assert looks["student, f1"] == ("#0072B2", "o", "-")
    assert looks["student, accuracy"] == ("#0072B2", "o", "--")
    assert looks["teacher, f1"] == ("#D55E00", "s", "-")
    assert looks["teacher, accuracy"] == ("#D55E00", "s", "--")


def test_a_run_without_a_teacher_has_three_panels_and_the_teachers_own_run_is_called_the_teachers():
    records = [step(50), epoch(1, f1=0.5, accuracy=0.6, last_gap=None)]
    results = {"task": "mrpc", "seed": 7, "best_epoch": 1}
    for method, who in (("finetune", "student"), ("teacher", "teacher")):
        found = panels(curves({**results, "method": method}, records))
        assert list(found) == ["Dev score", "Training loss", "Learning rate"]
        assert set(lines(found["Dev score"])) == {f"{who}, f1", f"{who}, accuracy", "best epoch"}
        assert set(lines(found["Learning rate"])) == {who}
        assert set(lines(found["Training loss"])) == {"single steps", "mean of epoch"}


def test_a_frozen_teacher_has_no_gap_and_no_drift():
    same = {"teacher_scores": RESULTS["teacher"]["scores_at_start"], "agreement": 0.5, "teacher_drift": 0.0}
    records = [step(50), epoch(1, f1=0.5, accuracy=0.6, last_gap=None, **same)]
    found = panels(curves({**RESULTS, "method": "kd"}, records))
    assert list(found)[3:] == ["Agreement of student and teacher"]


def test_two_dev_splits_are_told_apart():
    records = [epoch(1, f1=0.5, accuracy=0.6)]
    records[0]["scores"] = {"dev_matched": {"accuracy": 0.8}, "dev_mismatched": {"accuracy": 0.7}}
    drawn = lines(curves({"task": "mnli", "method": "finetune", "seed": 1, "best_epoch": 1}, records).axes[0])
    assert drawn["student, accuracy (dev_matched)"] == close([[1, 80]])
    assert drawn["student, accuracy (dev_mismatched)"] == close([[1, 70]])


def test_an_undefined_score_is_a_hole_and_a_panel_without_any_value_says_so():
    records = reptile_records()
    records[1]["scores"]["dev"]["f1"] = None
    (_, first), (_, second) = lines(curves(RESULTS, records).axes[0])["student, f1"]
    assert math.isnan(first)
    assert second == pytest.approx(55)
    for record in (records[1], records[3]):
        record["agreement"] = None
    agreement = curves(RESULTS, records).axes[3]
    assert [text.get_text() for text in agreement.texts] == ["undefined"]


def test_learning_rates_far_apart_share_a_logarithmic_axis():
    close_rates = [step(50, teacher_lr=1e-4 / 19), epoch(1, f1=0.5, accuracy=0.6)]
    far_rates = [step(50, teacher_lr=1e-4 / 21), epoch(1, f1=0.5, accuracy=0.6)]
    results = {"task": "mrpc", "method": "finetune", "seed": 7, "best_epoch": 1}
    assert curves(results, close_rates).axes[2].get_yscale() == "linear"
    assert curves(results, far_rates).axes[2].get_yscale() == "log"


def test_a_step_stands_at_its_place_between_the_epochs():
    records = [step(25), step(150), epoch(1, f1=0.5, accuracy=0.6), {**epoch(2, f1=0.5, accuracy=0.6), "step": 200}]
    results = {"task": "mrpc", "method": "finetune", "seed": 7, "best_epoch": 1}
    drawn = lines(curves(results, records).axes[1])["single steps"]
    assert [x for x, _ in drawn] == [0.25, 1.5]


@pytest.mark.parametrize(
    "change",
    [
        lambda records: records[1:2],
        lambda records: [{**records[1], "scores": {"dev": {"f1": None, "accuracy": None}}}],
        lambda records: [{**record, "agreement": None} for record in records],
        lambda records: [{**record, "lr": 0.0, "teacher_lr": 0.0} for record in records],
        lambda records: records + [step(number, gap=1.0, teacher_lr=1e-6) for number in range(151, 250)],
    ],
    ids=["one epoch, no step", "no score", "no agreement", "rates of 0", "many steps"],
)
def test_odd_runs_are_drawn_without_warnings(tmp_path, change):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_plots.save(curves(RESULTS, change(reptile_records())), tmp_path / "curves.png")
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[2] == 4


def test_a_regression_run_is_drawn_after_it_and_replaced_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "draw_after_run", run_plots.draw_after_run)
    options = [f"runs_dir={tmp_path}", "task=toy-regression", "train.epochs=1"]
    run = Experiment.from_yaml(TINY, *options)
    run.fit()
    picture = run.folder.path / "curves.png"
    height, width, _ = matplotlib.image.imread(picture).shape
    assert (width, height) == (1296, 744)
    assert (run.teacher_folder.path / "curves.png").exists()
    assert {path.name for path in run.folder.path.iterdir()} >= {"curves.png", "results.json"}
    assert not list(run.folder.path.glob(".*"))
    monkeypatch.setattr(run_module, "draw_after_run", lambda folder: None)
    run.fit(overwrite=True)
    assert not picture.exists()


def test_a_fault_in_drawing_is_one_line_in_the_log_and_the_run_is_finished(tmp_path, monkeypatch, caplog):
    def broken(folder):
        raise ZeroDivisionError("no ink")

    monkeypatch.setattr(run_plots, "draw_curves", broken)
    run_plots.draw_after_run(tmp_path)
    (record,) = caplog.records
    assert record.getMessage() == f"{tmp_path}: curves.png could not be drawn: no ink"


def test_without_matplotlib_a_run_is_silent_and_a_picture_that_is_asked_for_is_refused(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_plots.importlib.util, "find_spec", lambda name: None)
    run_plots.draw_after_run(tmp_path)
    assert not caplog.records
    with pytest.raises(MissingExtraError, match=r"^pictures need matplotlib: pip install 'reptile-distil\[plots\]'$"):
        curves(RESULTS, reptile_records())


def test_a_folder_without_results_is_refused_by_name(tmp_path):
    with pytest.raises(RunError, match=f"^{tmp_path}: holds no finished run to draw"):
        run_plots.draw_curves(tmp_path)


def test_the_users_own_matplotlib_style_changes_nothing_and_is_left_as_it_is(tmp_path):
    with matplotlib.rc_context({"lines.linewidth": 9.0, "axes.facecolor": "black"}):
        score = curves(RESULTS, reptile_records()).axes[0]
        assert score.lines[0].get_linewidth() == 1.8
        assert score.get_facecolor() == (1, 1, 1, 1)
        assert matplotlib.rcParams["lines.linewidth"] == 9.0


def run(task, method, score, seconds=10.0, seed=0):
    scores = {"dev": {"accuracy": score}}
    values = {"scores": scores, "score": score, "train_seconds": seconds}
    return helper.results_dict(task=task, method=method, seed=seed, **values)


SPREAD = "± 1 standard deviation over seeds"
SEEDS = [
    run("rte", "reptile", 0.60, 30, 1),
    run("rte", "reptile", 0.64, 34, 2),
    run("rte", "kd", 0.50, 20, 1),
    run("cola", "reptile", 0.40, 50, 1),
    run("cola", "kd", None, 40, 1),
    run("cola", "kd", 0.30, 40, 2),
]


def bars(axes):
    """Label → {tick label: height}."""
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    drawn = {}
    for container in axes.containers:
        if isinstance(container, matplotlib.container.BarContainer):
            drawn[container.get_label()] = {
                ticks[round(bar.get_x() + bar.get_width() / 2)]: pytest.approx(bar.get_height()) for bar in container
            }
    return drawn


def test_bars_are_means_over_seeds_in_percent_and_an_undefined_seed_leaves_a_word_instead_of_a_bar():
    axes = table_plots.table_figure(SEEDS).axes[0]
    assert bars(axes) == {"kd": {"rte": 50.0}, "reptile": {"rte": 62.0, "cola": 40.0}}
    assert [text.get_text().strip() for text in axes.texts] == ["undefined"]
    assert axes.get_ylabel() == "dev score (%)"


def test_error_bars_are_standard_deviations_over_two_seeds_or_more():
    axes = table_plots.table_figure(SEEDS).axes[0]
    (errors,) = [found for found in axes.containers if isinstance(found, matplotlib.container.ErrorbarContainer)]
    ((_, low), (_, high)) = errors.lines[2][0].get_segments()[0]
    assert (low, high) == (pytest.approx(62 - 8**0.5), pytest.approx(62 + 8**0.5))
    dots = [line.get_ydata() for line in axes.lines if line.get_marker() == "."]
    assert [sorted(np.round(values, 6)) for values in dots] == [[60, 64]]


def test_score_against_time_shows_mean_seeds_and_spread_a_panel_for_each_task():
    figure = table_plots.score_against_time_figure(SEEDS)
    rte, cola = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["rte", "cola"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"seconds of training"}
    means = {label: points for label, points in lines(rte).items() if not label.startswith("_")}
    assert means == {"kd": close([[20, 50]]), "reptile": close([[32, 62]])}
    (spread,) = rte.containers
    (across,), (up,) = (bars.get_segments() for bars in spread.lines[2])
    assert across.tolist() == close([[32 - 8**0.5, 62], [32 + 8**0.5, 62]])
    assert up.tolist() == close([[32, 62 - 8**0.5], [32, 62 + 8**0.5]])
    assert [text.get_text() for text in cola.texts] == ["undefined: kd"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kd", "reptile", SPREAD]


def many_runs(num_names=30):
    """Rows of 30 names, all but the first of Reptile, two seeds each, on two tasks."""
    return [
        {
            **run(task, "kd" if number == 0 else "reptile", 0.5 + number / 100 + seed / 50, seed=seed),
            "row": f"r{number}",
        }
        for task in ("rte", "cola")
        for number in range(num_names)
        for seed in (0, 1)
    ]


def test_many_names_stand_beside_the_axis_in_the_colour_of_their_method_with_their_mean_and_spread():
    runs = many_runs()
    for index in (4, 5):
        runs[index] |= {"scores": {"dev": {"accuracy": None}}}
    figure = table_plots.table_figure(runs, name=lambda result: result["row"])
    rte, cola = figure.axes
    assert [tick.get_text() for tick in rte.get_yticklabels()] == [f"r{number}" for number in range(30)]
    assert [tick.get_text() for tick in cola.get_yticklabels()] == [""] * 30
    means = {bar.lines[0].get_ydata()[0]: bar for bar in rte.containers}
    assert sorted(means) == [number for number in range(30) if number != 2]
    assert {number: bar.lines[0].get_xdata()[0] for number, bar in means.items()} == {
        number: pytest.approx(51 + number) for number in means
    }
    assert means[7].lines[2][0].get_segments()[0].tolist() == close([[58 - 2**0.5, 7], [58 + 2**0.5, 7]])
    assert {bar.lines[0].get_color() for number, bar in means.items() if number} == {"#0072B2"}
    assert means[0].lines[0].get_color() == "#009E73"
    assert [(text.get_text(), text.get_position()[1]) for text in rte.texts] == [("undefined", 2)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kd", "reptile", SPREAD]
    assert rte.get_ylim()[0] > rte.get_ylim()[1]  # the first name on top


def test_no_label_of_many_names_lies_over_another_or_over_a_panel():
    figure = table_plots.table_figure(many_runs(), name=lambda result: f"{result['row']}-of-a-long-name")
    figure.draw_without_rendering()
    boxes = [tick.get_window_extent() for tick in figure.axes[0].get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))
    assert all(box.x0 >= 0 and box.x1 <= figure.axes[0].bbox.x0 for box in boxes)


def test_score_against_time_of_many_names_has_panels_of_ten_at_most_each_with_its_spread():
    figure = table_plots.score_against_time_figure(many_runs(), name=lambda result: result["row"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["rte", "cola"] * 3
    shown = [[name for name in lines(axes) if not name.startswith("_")] for axes in figure.axes]
    assert [name for group in shown[::2] for name in group] == [f"r{number}" for number in range(30)]
    assert lines(figure.axes[0])["r7"] == close([[10, 58]])
    assert [len(axes.containers) for axes in figure.axes] == [10] * 6
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes[1::2]]
    assert legends == [[*group, SPREAD] for group in shown[::2]]
    assert len({axes.get_xlim() + axes.get_ylim() for axes in figure.axes[::2]}) == 1


def test_one_seed_has_no_spread_and_no_word_of_one():
    for figure in (table_plots.table_figure, table_plots.score_against_time_figure):
        drawn = figure([run("rte", "kd", 0.5), run("rte", "reptile", 0.6)])
        assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["kd", "reptile"]


def test_times_far_apart_are_drawn_on_a_logarithmic_axis():
    far = table_plots.score_against_time_figure([run("rte", "kd", 0.5, 1), run("rte", "reptile", 0.6, 11)])
    near = table_plots.score_against_time_figure([run("rte", "kd", 0.5, 1), run("rte", "reptile", 0.6, 9)])
    assert [figure.axes[0].get_xscale() for figure in (far, near)] == ["log", "linear"]
    assert near.axes[0].get_xlim()[0] == 0
    both = [run(task, "kd", 0.5, 1) for task in ("rte", "cola")] + [run("rte", "reptile", 0.6, 11)]
    figure = table_plots.score_against_time_figure([*both, run("cola", "reptile", 0.6, 2)])
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]  # one kind of axis in a picture


def test_runs_can_be_grouped_under_other_names_each_with_a_look_of_its_own():
    runs = [run("rte", "reptile", 0.5), run("rte", "reptile", 0.6)]
    names = iter(["interpolate", "adamw"])
    figure = table_plots.table_figure(runs, name=lambda _: next(names))
    assert bars(figure.axes[0]) == {"interpolate": {"rte": 50.0}, "adamw": {"rte": 60.0}}
    first, second = figure.axes[0].containers
    assert first[0].get_facecolor() != second[0].get_facecolor()


def test_a_long_legend_stays_inside_the_picture():
    names = iter([f"{method} with a rather long name" for method in ("kd", "reptile", "finetune", "teacher")])
    figure = table_plots.table_figure([run("rte", "kd", 0.5)] * 4, name=lambda _: next(names))
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_both_table_pictures_are_written_and_no_results_are_refused(tmp_path):
    for draw in (table_plots.draw_table, table_plots.draw_score_against_time):
        path = draw(SEEDS, tmp_path / f"{draw.__name__}.png")
        assert matplotlib.image.imread(path).shape[2] == 4
        with pytest.raises(ValueError, match="no results"):
            draw([], path)


def test_results_json_as_a_run_writes_it_can_be_drawn(tmp_path):
    fitted = Experiment.from_yaml(TINY, f"runs_dir={tmp_path}", "method=finetune")
    fitted.fit()
    results = json.loads(fitted.folder.results.read_text())
    assert bars(table_plots.table_figure([results]).axes[0])["finetune"]["toy-sentence"] == 100 * results["score"]


def test_the_pictures_of_a_table_show_dev_scores_where_validation_rows_chose():
    runs = [
        run("stsb", "kd", 0.9) | {"scores": {"validation": {"p": 0.9, "s": 0.9}, "dev": {"p": 0.5, "s": 0.25}}},
        run("stsb", "reptile", 0.9) | {"scores": {"validation": {"p": 0.9, "s": 0.9}, "dev": {"p": 0.5, "s": None}}},
    ]
    assert bars(table_plots.table_figure(runs).axes[0]) == {"kd": {"stsb": 37.5}, "reptile": {}}


def test_the_labels_of_a_logarithmic_axis_are_plain_numbers_that_do_not_overlap():
    runs = [run("rte", "kd", 0.5, seconds=3.4), run("rte", "reptile", 0.5, seconds=41.0)]
    axes = table_plots.score_against_time_figure(runs).axes[0]
    axes.figure.canvas.draw()
    labels = [label.get_text() for label in axes.get_xticklabels() if label.get_text()]
    assert {"5", "10", "20"} <= set(labels)
    assert not [label.get_text() for label in axes.get_xticklabels(minor=True) if label.get_text()]
