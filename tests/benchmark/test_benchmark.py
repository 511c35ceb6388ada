"""The benchmark: what it counts, what it compares, and what its script writes. No test looks at a time."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from torch.utils.flop_counter import FlopCounterMode

from reptile_distil.benchmark.arithmetic import Peaks, Shape, floor_seconds, layer_flops, step_bytes, step_flops
from reptile_distil.benchmark.released_step import ReleasedStep
from reptile_distil.benchmark.report import NAMES, plot, to_markdown, what_grows
from reptile_distil.benchmark.steps import (
    METHODS,
    Case,
    Measurement,
    Settings,
    build_step,
    grouped_rows,
    make_batch,
    make_cases,
    make_step_batches,
    measure_memory,
    padded_length,
    run_case,
    time_in_turns,
)
from reptile_distil.benchmark.token_lengths import QUANTILES, draw_lengths, measure_quantiles
from reptile_distil.cli import run
from reptile_distil.errors import ConfigError, DataError, RunError
from reptile_distil.models.toy import toy_tokenizer
from reptile_distil.plots.style import BLUE, GREEN, STYLES
from scripts import benchmark
from tests.helpers.dying import die
from tests.helpers.models import bert
from tests.helpers.tables import cells_of
from tests.oracles.adamw import LiteralAdamw
from tests.oracles.reptile import literal_step

TINY = Case("6", batch_size=2, teacher_layers=2, student_layers=1, width=64)
SHAPE = Shape(12, 6, 384, 1536, teacher_parameters=33, student_parameters=22)


def test_a_layers_operations_are_those_of_its_matrix_products():
    """2 rows of 3 tokens, width 4, inner width 8: 2 * 6 tokens * (64 + 64) weights, and 4 * 18 pairs * 4."""
    assert layer_flops(np.array([3, 3]), 4, 8) == 1536 + 288


UNITS = {
    "finetune": 18,
    "kd": 30,
    "kd-kept": 18,
    "reptile": 54,
    "student-first": 30,
    "metadistil": 114,
    "prokt": 54,
    "cotrain": 54,
    "checkpoints": 30,
    "lgtm": 114,
    "released": 60,
}


def kept_in(figures):
    """A `Figure.savefig` that keeps the figure and writes an empty file."""

    def savefig(figure, path, **_):
        figures.append(figure)
        Path(path).touch()

    return savefig


@pytest.mark.parametrize(("method", "units"), UNITS.items())
def test_a_step_of_12_to_6_layers_takes_its_layer_units(method, units):
    lengths = np.array([5, 9])
    assert step_flops(method, SHAPE, lengths) == units * layer_flops(lengths, 384, 1536)


def test_a_quiz_of_its_own_rows_costs_its_own_operations():
    lengths, quiz = np.array([5, 9]), np.array([3])
    expected = 96 * layer_flops(lengths, 384, 1536) + 18 * layer_flops(quiz, 384, 1536)
    assert step_flops("metadistil", SHAPE, lengths, quiz) == expected
    assert step_flops("kd", SHAPE, lengths, quiz) == step_flops("kd", SHAPE, lengths)


@pytest.mark.parametrize("method", UNITS)
def test_a_step_takes_as_many_products_as_its_layer_units_say(method):
    """PyTorch's own count, of two depths, so that what lies outside the layers cancels, with attention written out."""
    counted = []
    for depth in (1, 2):
        case = Case("6", batch_size=2, teacher_layers=2 * depth, student_layers=depth, width=64)
        step, _ = build_step(method, case, Settings(quiz_batch_size=3), attention="eager")
        with FlopCounterMode(display=False) as counter:
            step(*make_step_batches(method, np.array([6, 6]), case, Settings(quiz_batch_size=3)))
        counted.append(counter.get_total_flops())
    shape = Shape(2, 1, 64, 256, teacher_parameters=0, student_parameters=0)
    assert counted[1] - counted[0] == step_flops(method, shape, np.array([6, 6]), np.array([6, 6, 6]))


def test_metadistil_moves_the_weights_of_its_passes():
    """Teacher: 2 forwards, a backward of 2, AdamW's 7; student: 2 forwards, 2 backwards, a second one, a quiz of 3,
    the assumed weights' 3, AdamW's 7.
    """
    assert step_bytes("metadistil", SHAPE) == 4 * (11 * 33 + (2 + 4 + 2 + 3 + 3 + 7) * 22)


def test_a_quiz_comes_beside_metadistils_batches_alone_with_as_many_rows_as_asked():
    lengths = np.array([2, 5])
    assert len(make_step_batches("kd", lengths, TINY, Settings())) == 1
    sizes = (None, 1, 3)
    made = [make_step_batches("metadistil", lengths, TINY, Settings(quiz_batch_size=rows)) for rows in sizes]
    assert [quiz["attention_mask"].sum(dim=1).tolist() for _, quiz in made] == [[2, 5], [2], [2, 5, 2]]
    for batch, quiz in made[:1]:
        assert not torch.equal(batch["input_ids"], quiz["input_ids"])


def test_the_floor_is_the_slower_of_computing_and_moving():
    lengths = np.array([32])
    assert floor_seconds("kd", SHAPE, lengths, Peaks(flops=1.0, bandwidth=1e30)) == step_flops("kd", SHAPE, lengths)
    assert floor_seconds("kd", SHAPE, lengths, Peaks(flops=1e30, bandwidth=2.0)) == step_bytes("kd", SHAPE) / 2
    assert step_bytes("kd", SHAPE) == 4 * (33 + (1 + 2 + 7) * 22)


def test_lengths_follow_the_tasks_quantiles():
    lengths = draw_lengths("rte", 20000)
    np.testing.assert_allclose(np.quantile(lengths, [0.25, 0.5, 0.75]), [43, 56, 85], atol=2)
    assert draw_lengths("rte", 20000, max_length=64).max() == 64
    assert list(draw_lengths("32", 3)) == [32, 32, 32]
    assert all(len(quantiles) == 21 and max(quantiles) <= 128 for quantiles in QUANTILES.values())


def test_lengths_are_measured_in_a_folder_of_official_files(tmp_path):
    """RTE's rows: two sentences of one word each, with three special tokens around them."""
    (tmp_path / "RTE").mkdir()
    rows = "".join(f"{index}\tgood\tbad\tentailment\n" for index in range(2490))
    (tmp_path / "RTE" / "train.tsv").write_text(f"index\tsentence1\tsentence2\tlabel\n{rows}")
    assert measure_quantiles("rte", tmp_path, toy_tokenizer()) == (5,) * 21


@pytest.mark.parametrize("name", ["mnli", "0", "1", "-3", ""])
def test_unknown_lengths_are_refused(name):
    with pytest.raises(DataError, match=r"lengths .*expected a number of tokens, or a task: cola, sst2"):
        draw_lengths(name, 1)


def test_the_released_step_alone_pads_a_tasks_rows_to_the_longest_allowed():
    lengths, task, equal = np.array([9, 12]), Case("sst2"), Case("32")
    assert [padded_length(method, lengths, task, Settings()) for method in ("kd", "reptile", "released")] == [
        12,
        12,
        128,
    ]
    assert padded_length("released", np.array([32, 32]), equal, Settings()) == 32


def test_batches_go_from_short_to_long():
    rows = grouped_rows(Case("sst2", batch_size=4), Settings(num_batches=3))
    longest = [batch.max() for batch in rows]
    assert longest == sorted(longest)
    assert longest[0] < longest[-1]
    assert [len(batch) for batch in rows] == [4, 4, 4]


def test_a_batch_holds_rows_of_the_lengths_asked_for():
    batch = make_batch(np.array([2, 5]), 6, "cpu")
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
    assert (batch["input_ids"] > 0).long().tolist() == batch["attention_mask"].tolist()


def test_methods_take_turns_and_the_first_round_does_not_count():
    order = []
    steps = {method: lambda _, method=method: order.append(method) for method in ("kd", "reptile")}
    rows = [np.array([3]), np.array([4])]
    taken = time_in_turns(steps, rows, TINY, Settings(num_rounds=2))
    assert order == ["kd", "reptile"] * 5
    assert [[len(of_batch) for of_batch in taken[method]] for method in steps] == [[2, 2], [2, 2]]


def test_the_released_step_is_the_literal_method():
    teacher, student = bert(4, seed=1, dtype=torch.float64), bert(2, seed=2, dtype=torch.float64)
    expected_teacher, expected_student = copy.deepcopy(teacher).eval(), copy.deepcopy(student)
    released = ReleasedStep(teacher, student, lr=1e-3)
    settings = {"alpha": 0.5, "temperature": 5.0, "max_grad_norm": 1.0, "inner_lr": 1e-3, "eps": 1e-8}
    settings |= {"inner_optimizer": "transformers4", "decay": 0.0, "layer_map": "skip", "update": "adamw"}
    optimizers = [LiteralAdamw(m.parameters(), 1e-3, 1e-8) for m in (expected_student, expected_teacher)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        batch = {"input_ids": torch.randint(1, 30, (8, 7), generator=generator), "labels": torch.arange(8) % 3}
        batch |= {"attention_mask": torch.ones(8, 7, dtype=torch.long), "token_type_ids": torch.zeros(8, 7).long()}
        released.step(batch)
        literal_step(batch, expected_teacher, expected_student, settings, *optimizers)
    for model, expected in ((teacher, expected_teacher), (student, expected_student)):
        for (name, value), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
            if not name.endswith("key.bias"):  # its gradient is 0 but for rounding, which AdamW blows up
                torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("method", UNITS)
def test_every_method_steps_on_the_benchmarks_models(method):
    step, shape = build_step(method, TINY, Settings())
    step(*make_step_batches(method, np.array([6, 6]), TINY, Settings()))
    assert shape[:4] == (2, 1, 64, 256)
    assert shape.teacher_parameters > shape.student_parameters


def test_every_combination_is_a_case():
    cases = make_cases(["32", "rte"], [8, 16], ["4:2", "6:3"], [64])
    assert len(cases) == 8
    assert cases[0] == Case("32", 8, 4, 2, 64)
    given = make_cases(["32"], [8], ["4:2", "6:3"], [64], models=("toy-bert-2L-8H", "toy-bert-1L-8H"))
    assert [(case.lengths, case.teacher, case.student) for case in given] == [
        ("32", "toy-bert-2L-8H", "toy-bert-1L-8H")
    ]


@pytest.mark.parametrize(("depth", "width"), [("12", 64), ("12:5", 64), ("0:0", 64), ("4:2", 65), ("4:2", 0)])
def test_depths_and_widths_that_no_model_has_are_refused(depth, width):
    with pytest.raises(ConfigError, match=r"--(depths|widths) .*: expected"):
        make_cases(["32"], [8], [depth], [width])


def test_memory_is_measured_in_a_process_of_its_own():
    own = measure_memory("kd", TINY, Settings())
    assert 1_000_000 < own < 2_000_000_000


def test_a_killed_measurement_is_one_sentence(monkeypatch):
    monkeypatch.setattr("reptile_distil.benchmark.steps._memory_of", die)
    with pytest.raises(RunError, match=r"^2->1 layers of 64, .*: the process that measured kd was killed"):
        measure_memory("kd", str(TINY), "settings")  # a case itself would make the process import PyTorch


def measurement(method, seconds):
    return Measurement(method, seconds, seconds / 2, (1.0, 2.0, 3.0), 32 / seconds, 5_000_000, 1e9, 0.5, 0.25)


def test_the_table_says_how_many_times_faster_than_the_released_step():
    table = to_markdown(TINY, [measurement("reptile", 2.0), measurement("released", 9.0)])
    assert cells_of(table)[1] == "reptile,2,1 2 3,1,16.0,5,1.0,50%,25%,4.50,4.50".split(",")


@pytest.mark.parametrize("lengths", [("6",), ("6", "12", "rte"), ("6", "12", "24")], ids=["one", "bars", "lines"])
def test_the_picture_is_drawn(tmp_path, lengths):
    pytest.importorskip("matplotlib")
    cases = [TINY._replace(lengths=name) for name in lengths]
    plot([(case, [measurement(method, 2.0) for method in UNITS]) for case in cases], tmp_path / "b.png", "a machine")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("by_processor", "label", "drawn"), [(False, "seconds", 2.0), (True, "CPU seconds", 1.0)])
def test_the_pictures_time_is_the_clocks_or_the_processors(tmp_path, monkeypatch, by_processor, label, drawn):
    figure_module = pytest.importorskip("matplotlib.figure")
    figures = []
    monkeypatch.setattr(
        figure_module.Figure, "savefig", lambda self, path, **_: [figures.append(self), Path(path).touch()]
    )
    measured = [(TINY._replace(lengths=name), [measurement("kd", 2.0)]) for name in ("6", "12", "24")]
    plot(measured, tmp_path / "b.png", "a machine", by_processor=by_processor)
    time_axes, memory_axes = figures[0].axes
    assert time_axes.get_ylabel() == f"{label} per step"
    assert time_axes.lines[0].get_xydata().tolist() == [[6, drawn], [12, drawn], [24, drawn]]
    assert memory_axes.lines[0].get_ydata().tolist() == [0.005] * 3


def test_what_grows_is_the_one_number_that_the_cases_differ_in():
    depths = [Case("32", 32, 2 * n, n, 384) for n in (2, 4, 6)]
    lengths = [Case(str(n)) for n in (16, 32, 64)]
    assert what_grows(depths) == ("layers of the teacher (the student has 1 / 2 of them)", [4, 8, 12])
    assert what_grows(lengths) == ("tokens in a row", [16, 32, 64])
    assert what_grows(lengths[:2]) is None
    assert what_grows([*lengths, *depths]) is None
    assert what_grows([*lengths, Case("rte")]) is None
    assert what_grows([*depths, Case("32", 32, 4, 1)]) is None
    assert what_grows([case._replace(teacher="t", student="s") for case in lengths]) is None


def test_every_method_that_can_be_measured_can_be_drawn():
    assert tuple(NAMES) == METHODS == tuple(UNITS)
    assert set(NAMES) <= set(STYLES)


@pytest.mark.parametrize("lengths", [("6",), ("6", "12", "24")], ids=["bars", "lines"])
def test_a_method_has_the_colour_it_has_in_every_other_picture(tmp_path, monkeypatch, lengths):
    figure_module = pytest.importorskip("matplotlib.figure")
    figures = []
    monkeypatch.setattr(
        figure_module.Figure, "savefig", lambda self, path, **_: [figures.append(self), Path(path).touch()]
    )
    measured = [(TINY._replace(lengths=name), [measurement(m, 2.0) for m in ("reptile", "kd")]) for name in lengths]
    plot(measured, tmp_path / "b.png", "a machine")
    axes = figures[0].axes[0]
    drawn = axes.lines or [bars.patches[0] for bars in axes.containers]
    colors = [line.get_color() if axes.lines else to_hex(line.get_facecolor()).upper() for line in drawn]
    assert colors == [BLUE, GREEN]
    assert axes.get_legend_handles_labels()[1] == ["Reptile", "frozen-teacher KD"]


def test_without_matplotlib_the_script_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(benchmark.main, ["--plot", str(tmp_path / "b.png")]) == 2
    assert "pip install 'reptile_distil[plots]'" in capsys.readouterr().err


def test_the_script_prints_a_table_and_writes_all_figures(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("reptile_distil.benchmark.steps.measure_memory", lambda *_: 7_000_000)
    monkeypatch.setattr("reptile_distil.benchmark.arithmetic.measure_peaks", lambda *_: Peaks(1e9, 1e9))
    options = "--lengths 6 --batch-sizes 2 --depths 2:1 --widths 64 --rounds 1 --device cpu --methods kd reptile"
    assert run(benchmark.main, [*options.split(), "--json", str(tmp_path / "b.json")]) == 0
    assert "2->1 layers of 64, batch 2, lengths 6" in capsys.readouterr().out
    case = json.loads((tmp_path / "b.json").read_text())["cases"][0]
    assert [method["method"] for method in case["methods"]] == ["kd", "reptile"]
    assert case["methods"][0]["peak_memory"] == 7_000_000
    # 2 rows of 6 tokens, 2 teacher layers and 3 passes through 1 student layer of width 64 and inner width 256
    assert case["methods"][0]["flops"] == pytest.approx(5 * (2 * 12 * (4 * 64**2 + 2 * 64 * 256) + 4 * 72 * 64))


def test_graphs_are_refused_where_there_are_none(capsys):
    assert run(benchmark.main, ["--graphs", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "error: --graphs: device cpu has no CUDA graphs; leave it out\n"


FEW = "--lengths 6 --batch-sizes 2 --depths 2:1 --widths 64 --device cpu --methods kd"
NO_NUMBERS = {
    "--threads 0": "--threads 0: expected 1 to 1024",
    "--threads 99999999999": "--threads 99999999999: expected 1 to 1024",
    "--rounds 0": "--rounds 0: expected at least 1",
    "--rounds -3": "--rounds -3: expected at least 1",
    "--batches 0": "--batches 0: expected at least 1",
    "--quiz-batch-size 0": "--quiz-batch-size 0: expected at least 1",
    "--batch-sizes 4 -2": "--batch-sizes -2: expected at least 1",
    "--lengths 16 513": "--lengths 513: the models have 512 positions; give at most so many",
    "--lengths 600 --models toy-bert-2L-8H toy-bert-2L-8H": "--lengths 600: toy-bert-2L-8H does not read rows of so",
    "--models nowhere/a nowhere/b": "nowhere/a: ",
    "--plot x.foo": "--plot x.foo: expected a name that ends in one of .eps, ",
}


@pytest.mark.parametrize(("options", "sentence"), NO_NUMBERS.items())
def test_what_cannot_be_measured_is_refused_before_anything_is(monkeypatch, capsys, tmp_path, options, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("reptile_distil.benchmark.arithmetic.measure_peaks", lambda *_: pytest.fail("measured"))
    assert run(benchmark.main, [*FEW.split(), *options.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {sentence}")


@pytest.mark.parametrize(("method", "width"), [("reptile", 16), ("kd", 16), ("metadistil", 9), ("released", 128)])
def test_with_graphs_batches_are_padded_to_what_graphs_are_recorded_for(method, width):
    assert padded_length(method, np.array([3, 9]), Case("sst2"), Settings(graphs=True)) == width


def test_with_graphs_no_step_counts_before_a_graph_of_every_batch_is_recorded():
    steps = []
    settings = Settings(methods=("kd",), num_batches=2, num_rounds=1, graphs=True)
    rows = [np.array([3, 4]), np.array([9, 2])]
    taken = time_in_turns({"kd": lambda given: steps.append(given["input_ids"].shape[1])}, rows, TINY, settings)
    assert steps == [8, 16] * 4
    assert [len(times) for times in taken["kd"]] == [1, 1]


@pytest.mark.cuda
def test_on_a_gpu_every_method_is_measured_with_graphs():
    settings = Settings(methods=("finetune", "kd", "reptile"), device="cuda", num_rounds=1, graphs=True)
    measured = run_case(TINY, settings, Peaks(flops=1e12, bandwidth=1e12))
    assert [measurement.method for measurement in measured] == ["finetune", "kd", "reptile"]
    assert all(measurement.seconds > 0 and measurement.peak_memory > 0 for measurement in measured)
