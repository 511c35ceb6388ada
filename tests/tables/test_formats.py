"""The three files of a table, letter by letter, and what must hold for any of them."""

import csv
import dataclasses
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reptile_distil.data.tasks import GLUE
from reptile_distil.errors import RunError
from reptile_distil.runtime.text_tables import Bold, markdown_table, terminal_table
from reptile_distil.tables.comparisons import Comparison
from reptile_distil.tables.config import load_table_config
from reptile_distil.tables.data import TableData, collect, columns_of
from reptile_distil.tables.formats import to_csv, to_latex, to_markdown, to_terminal, write_table
from reptile_distil.tables.sheets import average_name, describe_comparison, difference_sheet, notes, score_sheet
from tests.helpers import records as helper
from tests.helpers.paths import CONFIGS, FIXTURES, TINY_TABLE
from tests.helpers.tables import cells_of

GOLDEN = FIXTURES / "golden"

RTE = {"teacher": [0.7, 0.7, 0.7], "finetune": [0.6, 0.62, 0.64], "kd": [0.62, 0.65, 0.65], "my_variant": [0.64, 0.66]}
STSB = {
    "teacher": [(0.9, 0.88)] * 3,
    "finetune": [(0.8, 0.78), (0.82, 0.8), (0.84, 0.82)],
    "kd": [(0.8, 0.78), (None, None), (0.84, 0.82)],
    "my_variant": [(0.84, 0.82), (0.86, 0.84), (0.88, 0.86)],
}


def write_golden_runs(tmp_path):
    """A table of RTE and STS-B: one run is missing, one has undefined scores; only the results.json files are there."""
    yaml = tmp_path / "golden.yaml"
    base = CONFIGS / "base.yaml"
    yaml.write_text(
        f"extends: {base}\ntasks: [stsb, rte]\nmethods: [finetune, kd, my_variant]\nseeds: [1, 2, 3]\n"
        f"runs_dir: {tmp_path}/runs\nvariants:\n  my_variant: {{method: reptile, reptile: {{mu: 1e-3}}}}\n"
    )
    table = load_table_config(yaml)
    for cell in table.cells:
        of_row = (RTE if cell.task.name == "rte" else STSB)[cell.row]
        if cell.seed > len(of_row):
            continue
        if cell.task.name == "rte":
            scores = {"dev": {"accuracy": of_row[cell.seed - 1]}}
        else:
            scores = {"dev": dict(zip(("pearson", "spearmanr"), of_row[cell.seed - 1], strict=True))}
        results = {"scores": scores, "num_parameters": 109_483_778 if cell.row == "teacher" else 66_956_546}
        if cell.row in ("kd", "my_variant"):
            busy = cell.seed + 10 * (cell.task.name == "rte")  # so that each has a measurement of its own
            measured = {"1": (9.0, 4.5), "32": (97.0, 50.0)}
            batches = {size: {"teacher_ms": busy * a, "student_ms": busy * b} for size, (a, b) in measured.items()}
            results["latency"] = {"length": 128, "device": "cpu", "batches": batches}
        folder = tmp_path / f"runs/{cell.task.name}/{cell.row}-seed{cell.seed}"
        folder.mkdir(parents=True)
        of_cell = {"task": cell.task.name, "method": cell.role, "seed": cell.seed, "decisive": cell.decisive}
        (folder / "results.json").write_text(json.dumps(helper.results_dict(**results, **of_cell)))
    return table


@pytest.mark.parametrize("suffix", ["md", "tex", "csv"])
def test_the_files_are_letter_by_letter_what_these_results_must_give(tmp_path, suffix):
    """The golden files were worked out by hand: every mean, deviation, difference and p in them is a simple number."""
    markdown = write_table(collect(write_golden_runs(tmp_path)), tmp_path / "out" / "table")
    text = (tmp_path / "out" / f"table.{suffix}").read_text()
    assert text == (GOLDEN / f"table.{suffix}").read_text()
    assert markdown == (GOLDEN / "table.md").read_text()


@pytest.mark.parametrize("width", [60, 80, 100, 200, 1000])
def test_on_a_terminal_no_line_is_wider_and_every_cell_of_the_markdown_is_there(tmp_path, width):
    data = collect(write_golden_runs(tmp_path))
    text = to_terminal(data, width=width)
    assert max(map(len, text.splitlines())) <= width
    whole = to_markdown([score_sheet(data), difference_sheet(data)], notes(data))
    if width == 1000:
        assert text == whole
    tables, words = "\n".join(text.split("\n\n")[:-4]), text.split()
    for cell in (cell for line in cells_of(whole) for cell in line):
        assert cell in tables or all(word in words for word in cell.split())
    assert " ".join(words).endswith(" ".join(notes(data)[-1].split()))


def test_a_wide_table_is_shown_in_parts_that_each_begin_with_the_names_of_the_rows():
    header = ["method", "a long name of a task", "MRPC"]
    rows = [["kd", "1.0", ("2.0", " / ", Bold("3.0"))], ["a name of a row that is long", "4.0", "5.0"]]
    assert terminal_table(header, rows, width=35).splitlines() == [
        "method                a long name",
        "                        of a task",
        "--------------------  -----------",
        "kd                            1.0",
        "a name of a row that          4.0",
        "is long",
        "",
        "method                         MRPC",
        "--------------------  -------------",
        "kd                    2.0 / **3.0**",
        "a name of a row that            5.0",
        "is long",
    ]
    assert terminal_table(header, rows, width=200) == markdown_table(header, rows)


def table_of(tasks, scores, seeds=(1,)):
    """Scores by (task, row), a list of tuples by seed; None where there is no run."""
    runs = {}
    for (task, row), by_seed in scores.items():
        for seed, of_seed in zip(seeds, by_seed, strict=True):
            if of_seed is not None:
                splits = {}
                for column, score in zip(columns_of(GLUE[task]), of_seed, strict=True):
                    splits.setdefault(column.split, {})[column.metric] = score
                runs[task, row, seed] = helper.results(task=task, scores=splits, num_parameters=1_500_000)
    rows = tuple(dict.fromkeys(row for _, row in scores))
    return TableData(tuple(GLUE[task] for task in tasks), rows, tuple(seeds), runs)


def header_of(data):
    return score_sheet(data).header


def test_columns_stand_in_glues_order_with_two_numbers_where_glue_has_two():
    tasks = "wnli rte qnli mnli qqp stsb mrpc sst2 cola".split()
    data = table_of(tasks, {("rte", "kd"): [(0.5,)]})
    assert header_of(data)[:11] == [
        "method",
        "CoLA MCC",
        "SST-2 acc",
        "MRPC F1/acc",
        "STS-B P/S",
        "QQP F1/acc",
        "MNLI m/mm",
        "QNLI acc",
        "RTE acc",
        "WNLI acc",
        "GLUE",
    ]
    published = {row[0][0]: row for row in score_sheet(data).groups[1]}
    assert published["ReptileDistil (published, dev)"][1:11] == [
        (cell,)
        for cell in (
            *("54.8", "92.2", "91.6 / 87.7", "89.5 / 89.3", "87.6 / 90.1", "83.7 / 83.7", "90.5", "75.3", "-"),
            "83.05 (mean of 8)",
        )
    ]
    assert published["DistilBERT-6 (published, dev)"][10] == ("-",)


def test_fewer_than_nine_tasks_are_no_glue_average():
    assert header_of(table_of(["rte", "cola"], {("rte", "kd"): [(0.5,)]}))[3] == "mean of 2 tasks"


def test_a_missing_run_is_a_dash_with_n_0_and_never_0():
    data = table_of(["rte"], {("rte", "kd"): [None], ("rte", "finetune"): [(0.5,)]})
    kd, finetune = score_sheet(data).groups[0]
    assert "".join(kd[1]) == "- (n=0 of 1)"
    assert "".join(finetune[1]) == "50.0 (n=1)"
    assert kd[3:] == [("-",), ("-",), ("-",)]


def test_equal_best_scores_are_both_bold_and_a_single_student_is_not():
    for alike in (0.5, 0.5004, 0.4996):
        rows = {("rte", "kd"): [(0.5,)], ("rte", "finetune"): [(alike,)], ("rte", "teacher"): [(0.9,)]}
        two = table_of(["rte"], rows)
        assert to_markdown([score_sheet(two)], []).count("**50.0**") == 4
    assert "**90.0**" not in to_markdown([score_sheet(two)], [])
    assert "**" not in to_markdown([score_sheet(table_of(["rte"], {("rte", "kd"): [(0.5,)]}))], [])


@pytest.mark.parametrize(
    ("scores", "bold", "is_left_out"),
    [
        ({"kd": (0.6, 0.6), "reptile": (0.7, None), "finetune": (0.5, 0.5)}, {"kd"}, True),
        ({"kd": (0.6, 0.6), "reptile": (0.5, None), "finetune": (0.5, 0.5)}, {"kd"}, True),
        ({"kd": (0.6, 0.6), "reptile": (0.7, None)}, set(), True),  # nobody is left to be better than
        ({"kd": (0.6, None), "reptile": (None, 0.7)}, set(), True),
        ({"kd": (0.6, 0.6), "reptile": (None, None), "finetune": (0.5, 0.5)}, {"kd"}, False),  # a dash
        ({"kd": (0.6, 0.6), "reptile": (0.7, 0.7), "teacher": (0.9, None)}, {"reptile"}, False),
    ],
)
def test_the_best_student_is_one_with_all_its_seeds_and_the_note_says_where_one_is_left_out(scores, bold, is_left_out):
    runs = {("rte", row): [None if one is None else (one,) for one in of_row] for row, of_row in scores.items()}
    data = table_of(["rte"], runs, seeds=(1, 2))
    for row in score_sheet(data).groups[0]:
        marked = [any(isinstance(piece, Bold) for piece in cell) for cell in row[1:3]]
        assert marked == [row[0][0] in bold] * 2
    said = "Bold: the best student of those with all their seeds." if is_left_out else "Bold: the best student."
    assert said in notes(data)[0]


def test_a_mean_over_tasks_of_some_seeds_is_not_the_best_though_one_of_its_tasks_has_them_all():
    of_kd = {("rte", "kd"): [(0.5,)] * 2, ("sst2", "kd"): [(0.5,)] * 2}
    of_reptile = {("rte", "reptile"): [(0.6,)] * 2, ("sst2", "reptile"): [(0.9,), None]}
    of_finetune = {("rte", "finetune"): [(0.4,)] * 2, ("sst2", "finetune"): [(0.4,)] * 2}
    data = table_of(["rte", "sst2"], of_kd | of_reptile | of_finetune, seeds=(1, 2))
    kd, reptile, _ = score_sheet(data).groups[0]
    assert [isinstance(cell[0], Bold) for cell in kd[1:4]] == [True, False, True]
    assert [isinstance(cell[0], Bold) for cell in reptile[1:4]] == [False, True, False]


def test_the_worst_mcc_is_a_score_and_undefined_is_not():
    data = table_of(["cola"], {("cola", "kd"): [(-0.5,)], ("cola", "finetune"): [(None,)]})
    kd, finetune = score_sheet(data).groups[0]
    assert "".join(kd[1]) == "-50.0 (n=1)"
    assert "".join(finetune[1]) == "- (n=1, 1 undefined)"


def test_every_baseline_is_compared_with_every_student_once():
    data = table_of(["rte"], {("rte", row): [(0.5,)] for row in ("teacher", "finetune", "kd", "reptile")})
    rows = [row[0] for row in difference_sheet(data).groups[0]]
    assert rows == [("reptile - kd",), ("kd - finetune",), ("reptile - finetune",)]
    assert difference_sheet(table_of(["rte"], {("rte", "kd"): [(0.5,)]})) is None


EVENLY = "Over tasks every pair weighs alike"


def test_a_comparison_says_how_many_of_the_pairs_that_were_planned_it_has():
    """Reptile is ahead on MRPC's three seeds, behind in the mean over tasks, of which RTE has one of its three."""
    of_mrpc = {"kd": [(0.6, 0.6)] * 3, "reptile": [(0.63, 0.63)] * 3}
    of_rte = {"kd": [(0.6,)] * 3, "reptile": [(0.552,), None, None]}
    scores = {("mrpc", row): of_row for row, of_row in of_mrpc.items()}
    scores |= {("rte", row): of_row for row, of_row in of_rte.items()}
    data = table_of(["mrpc", "rte"], scores, seeds=(1, 2, 3))
    kd, reptile = score_sheet(data).groups[0]
    assert "60.0" in "".join(kd[3])
    assert "".join(reptile[3]) == "59.1 (n=1 of 3)"
    (row,) = difference_sheet(data).groups[0]
    assert [cell.split(" ", 1)[0] for (cell,) in row[1:]] == ["+3.0", "-4.8", "+1.1"]
    assert [cell[cell.index("n=") :] for (cell,) in row[1:]] == ["n=3", "n=1 of 3, no test", "n=4 of 6"]
    sheets = [difference_sheet(data)]
    assert "n=4 of 6 |" in to_markdown(sheets, notes(data))
    assert r"n=4 of 6 \\" in to_latex(sheets, notes(data))
    (line,) = [line for line in csv.DictReader(to_csv(data).splitlines()) if line["pairs_kd"] == "4"]
    assert (line["method"], line["task"], line["delta_kd"]) == ("reptile", "all", "1.05")
    (note,) = [note for note in notes(data) if EVENLY in note]
    assert note.endswith("weighs more: a difference there can contradict the means over tasks.")


@pytest.mark.parametrize(
    ("of_rte", "of_sst2", "has_note", "n"),
    [
        ((0.5, 0.6), (0.5, 0.6), False, "n=4"),
        ((0.5, 0.6), (0.5, None), True, "n=3 of 4"),
        ((0.5, None), (None, 0.6), False, "n=2 of 4"),
        ((0.5, 0.6), (None, None), True, "n=2 of 4"),  # a whole task is missing
        ((0.5, None), (None, None), False, None),  # nothing is compared over tasks
    ],
)
def test_the_notes_say_that_tasks_weigh_unevenly_only_where_they_do(of_rte, of_sst2, has_note, n):
    scores = {("rte", "kd"): of_rte, ("sst2", "kd"): of_sst2}
    scores = {key: [None if score is None else (score,) for score in of_row] for key, of_row in scores.items()}
    scores |= {(task, "finetune"): [(0.5,), (0.5,)] for task in ("rte", "sst2")}
    data = table_of(["rte", "sst2"], scores, seeds=(1, 2))
    assert any(EVENLY in note for note in notes(data)) == has_note
    ((*_, (over_tasks,)),) = difference_sheet(data).groups[0]
    assert over_tasks == "-" if n is None else over_tasks.endswith(" " + n)


@pytest.mark.parametrize(
    ("test", "planned", "expected"),
    [
        ("McNemar", 1, "(McNemar, 277 rows)"),
        ("McNemar", 3, "(McNemar, 277 rows, n=1 of 3)"),
        ("", 1, "n=1, no test"),
        ("", 3, "n=1 of 3, no test"),
    ],
)
def test_a_comparison_of_one_seed_says_of_how_many(test, planned, expected):
    found = Comparison(1.0, math.nan, math.nan, math.nan, 277 if test else 1, test)
    assert describe_comparison(found, planned) == f"+1.0 {expected}"


def test_many_problems_are_counted_not_listed():
    data = table_of(["rte"], {("rte", "kd"): [(0.5,)]})
    data.problems += [f"cell {index}: not finished" for index in range(23)]
    assert notes(data)[-1].endswith("cell 19: not finished and 3 more.")


score = st.none() | st.floats(-1, 1)
cell = st.none() | st.tuples(score)
pair = st.none() | st.tuples(score, score)


@given(data=st.data())
def test_any_table_is_rectangular_balanced_and_without_nan(data):
    rows = data.draw(st.lists(st.sampled_from(["teacher", "finetune", "kd", "a_b"]), min_size=1, unique=True))
    scores = {("cola", row): data.draw(st.lists(cell, min_size=2, max_size=2)) for row in rows}
    scores |= {("mnli", row): data.draw(st.lists(pair, min_size=2, max_size=2)) for row in rows}
    table = table_of(["cola", "mnli"], scores, seeds=(1, 2))
    sheets = [sheet for sheet in (score_sheet(table), difference_sheet(table)) if sheet]
    markdown, latex, lines = to_markdown(sheets, notes(table)), to_latex(sheets, notes(table)), to_csv(table)
    for block in markdown.split("\n\n")[: len(sheets)]:
        assert len({line.count("|") for line in block.splitlines()}) == 1
        assert len({len(line) for line in block.splitlines()}) == 1
    for text in (markdown, latex, lines):
        assert not re.search(r"\b(nan|None|inf)\b", text)
    assert_latex_is_balanced(latex)
    parsed = list(csv.DictReader(lines.splitlines()))
    assert all(None not in line and None not in line.values() for line in parsed)
    ours = [line for line in parsed if line["source"] == "run"]
    keys = [(line["method"], line["task"], line["split"], line["metric"]) for line in ours]
    assert len(set(keys)) == len(keys) == len(rows) * (1 + 3 + 4)


def assert_latex_is_balanced(text):
    """Every environment is closed in order, every brace too, and every row has as many cells as its table columns."""
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    bare = re.sub(r"\\[{}\\%&#_$]", "", re.sub(r"\\\\$", "", text, flags=re.MULTILINE))
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in rows} == {len(columns)}
        assert body.count(r"\toprule") == body.count(r"\bottomrule") == 1


def test_the_golden_latex_is_balanced():
    assert_latex_is_balanced((GOLDEN / "table.tex").read_text())


def test_a_teacher_from_elsewhere_is_one_run_known_from_its_students(tmp_path):
    tiny = TINY_TABLE
    overrides = [f"runs_dir={tmp_path}", "methods=[kd]", "seeds=[1,2]", "tasks=[toy-sentence]", "teacher.finetuned=x"]
    table = load_table_config(tiny, overrides)
    for one in table.cells:
        one.folder.mkdir(parents=True)
        teacher = {"num_parameters": 4_000_000, "scores_at_start": {"dev": {"accuracy": 0.75}}}
        results = {"scores": {"dev": {"accuracy": 0.5}}, "num_parameters": 2_000_000, "teacher": teacher}
        values = helper.results_dict(**results, method="kd", decisive=one.decisive)
        (one.folder / "results.json").write_text(json.dumps(values))
    teacher, kd = score_sheet(collect(table)).groups[0]
    assert ["".join(cell) for cell in teacher[:4]] == ["teacher", "75.0 (n=1)", "75.0 (n=1)", "4.00"]
    assert ["".join(cell) for cell in kd[:4]] == ["kd", "50.0 ± 0.0 (n=2)", "50.0 ± 0.0 (n=2)", "2.00"]


def test_rows_with_teachers_of_their_own_have_no_common_one(tmp_path):
    variants = "variants={weak: {method: kd, teacher: {finetuned: x}}, strong: {method: kd, teacher: {finetuned: y}}}"
    overrides = [f"runs_dir={tmp_path}", "methods=[weak, strong]", "seeds=[1]", "tasks=[toy-sentence]", variants]
    table = load_table_config(TINY_TABLE, overrides)
    for one in table.cells:
        one.folder.mkdir(parents=True)
        teacher = {"num_parameters": 4_000_000, "scores_at_start": {"dev": {"accuracy": 0.75}}}
        values = helper.results_dict(teacher=teacher, method="kd", decisive=one.decisive)
        (one.folder / "results.json").write_text(json.dumps(values))
    data = collect(table)
    assert "".join(score_sheet(data).groups[0][0][1]).startswith("-")
    assert notes(data)[-1] == "Not in the table: toy-sentence teacher: weak and strong have different ones."


def test_an_own_task_has_no_published_scores_whatever_it_is_called():
    files = {split: split for split in GLUE["qqp"].splits}
    own = dataclasses.replace(GLUE["qqp"], folder=None, metrics=("accuracy",), files=files)
    assert own.is_own
    runs = {("qqp", "kd", 1): helper.results(task="qqp", scores={"dev": {"accuracy": 0.5}})}
    data = TableData((own,), ("kd",), (1,), runs)
    assert len(score_sheet(data).groups) == 1
    assert "published" not in to_csv(data)
    nine = [dataclasses.replace(own, name=name) for name in "cola sst2 mrpc stsb qqp mnli qnli rte wnli".split()]
    assert average_name(nine) == "mean of 9 tasks"


def test_a_run_with_other_settings_is_left_out_and_named(tmp_path):
    write_golden_runs(tmp_path)
    table = load_table_config(tmp_path / "golden.yaml", ["loss.alpha=0.25"])
    data = collect(table)
    assert not data.of_row("kd")
    assert len(data.of_row("finetune")) == 6
    assert any("kd seed 1" in problem and "loss.alpha = 0.5, not 0.25" in problem for problem in data.problems)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/table.md: cannot be written"):
        write_table(table_of(["rte"], {("rte", "kd"): [(0.5,)]}), tmp_path / "file" / "table")


@pytest.mark.parametrize(
    ("splits", "sentence"),
    [
        ([("dev",)] * 2, "each of the best epoch on that very set:"),
        ([("validation", "dev")] * 2, "each of the best epoch on training rows held out for the choice:"),
        (
            [("validation", "dev"), ("dev",)],
            "each of the best epoch, on that very set or on training rows held out for the choice:",
        ),
    ],
)
def test_the_notes_say_what_the_epoch_was_chosen_by(splits, sentence):
    data = table_of(["rte"], {("rte", "kd"): [(0.5,), (0.6,)]}, seeds=(1, 2))
    for key, names in zip(data.runs, splits, strict=True):
        data.runs[key] = helper.results(scores={name: {"accuracy": 0.5} for name in names})
    assert sentence in notes(data)[0]


def test_the_notes_say_how_many_cells_would_show_a_point():
    runs = {("rte", "kd"): [(0.61,), (0.64,), (0.62,)], ("rte", "finetune"): [(0.60,), (0.60,), (0.60,)]}
    (note,) = [note for note in notes(table_of(["rte"], runs, seeds=(1, 2, 3))) if note.startswith("How many")]
    assert "to show a point between two rows (p below 0.05, in four studies of five): kd and finetune 21." in note
