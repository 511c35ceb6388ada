"""metrics.jsonl as tables."""

import json
import math

import pandas as pd
import pytest

from reptile_distil import Experiment
from reptile_distil.errors import CallbackError, RunError
from reptile_distil.runs.history import read_epochs, read_steps
from tests.helpers.paths import TINY

EPOCH = {
    "event": "epoch",
    "epoch": 1,
    "step": 4,
    "train": {"loss": 0.5, "grad_norm": 2.0},
    "last_gap": 0.25,
    "train_seconds": 1.5,
    "scores": {"dev": {"accuracy": 0.75, "f1": 0.5}, "dev-mm": {"accuracy": 0.625}},
    "score": 0.625,
    "teacher_scores": {"dev": {"accuracy": 0.875, "f1": None}},
    "teacher_score": 0.875,
    "agreement": 0.9,
    "teacher_drift": 0.1,
}
STEPS = [
    {"event": "step", "epoch": 1, "step": 2, "loss": 0.7, "lr": 1e-3, "teacher_lr": 1e-4},
    {"event": "step", "epoch": 1, "step": 4, "loss": 0.3, "lr": 5e-4, "teacher_lr": 5e-5},
]


@pytest.fixture
def write(tmp_path):
    def write(*records, rest=""):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "metrics.jsonl").write_text(text + rest)
        return tmp_path

    return write


def test_an_epoch_is_a_row_whose_columns_say_whose_score_on_which_split(write):
    frame = read_epochs(write(*STEPS, EPOCH, {**EPOCH, "epoch": 2, "step": 8, "agreement": 0.95}))
    assert frame.index.name == "epoch"
    assert frame.index.tolist() == [1, 2]
    assert frame.loc[1].drop("teacher_dev_f1").to_dict() == {
        "step": 4,
        "train_loss": 0.5,
        "train_grad_norm": 2.0,
        "gap": 0.25,
        "train_seconds": 1.5,
        "dev_accuracy": 0.75,
        "dev_f1": 0.5,
        "dev-mm_accuracy": 0.625,
        "score": 0.625,
        "teacher_dev_accuracy": 0.875,
        "teacher_score": 0.875,
        "agreement": 0.9,
        "teacher_drift": 0.1,
    }
    assert frame["agreement"].tolist() == [0.9, 0.95]


def test_an_undefined_score_is_nan_and_every_column_is_numbers(write):
    frame = read_epochs(write(EPOCH))
    assert math.isnan(frame.loc[1, "teacher_dev_f1"])
    assert {str(kind) for kind in frame.dtypes} == {"int64", "float64"}


def test_a_run_without_a_gap_has_no_such_column(write):
    assert "gap" not in read_epochs(write({**EPOCH, "last_gap": None}))


def test_a_logged_step_is_a_row(write):
    frame = read_steps(write(*STEPS, EPOCH))
    assert frame.index.tolist() == [2, 4]
    assert frame.loc[4].to_dict() == {"epoch": 1, "loss": 0.3, "lr": 5e-4, "teacher_lr": 5e-5}


def test_before_the_first_epoch_the_table_is_empty(write):
    frame = read_epochs(write())
    assert frame.empty
    assert isinstance(frame, pd.DataFrame)
    assert read_steps(write()).empty


def test_a_line_that_is_still_being_written_is_left_out(write):
    assert read_steps(write(*STEPS, rest='{"event": "st')).index.tolist() == [2, 4]


def test_a_damaged_file_is_named(write):
    with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be read"):
        read_steps(write(STEPS[0], rest="{}}\n"))


def test_where_there_is_no_run_it_says_so(tmp_path):
    experiment = Experiment.from_yaml(TINY, f"runs_dir={tmp_path}")
    for read in (lambda: experiment.history, lambda: experiment.step_history, lambda: read_epochs(tmp_path / "none")):
        with pytest.raises(RunError, match=r"no run yet; run fit\(\) or scripts/distil.py first"):
            read()


def test_the_history_is_whole_after_a_resume_and_in_a_run_that_is_opened_later(tmp_path):
    options = ("method=finetune", "train.epochs=3", f"runs_dir={tmp_path}")
    seen = []

    class Looks:
        def on_epoch_end(self, run, record):
            seen.append(len(experiment.history))
            if record["epoch"] == 2:
                raise ValueError

    experiment = Experiment.from_yaml(TINY, *options, callbacks=[Looks()])
    with pytest.raises(CallbackError):
        experiment.fit()
    assert seen == [1, 2]
    assert experiment.history.index.tolist() == [1, 2]
    results = Experiment.from_yaml(TINY, *options).fit()
    later = Experiment.from_yaml(TINY, *options)
    assert later.history.index.tolist() == [1, 2, 3]
    assert later.history["step"].tolist() == [5, 10, 15]
    assert later.history["dev_accuracy"].max() == results["scores"]["dev"]["accuracy"]
    assert later.step_history.index.tolist() == [2, 4, 6, 8, 10, 12, 14, 15]
    with pytest.raises(RunError, match=r"with train\.lr = 0\.001, not 0\.01"):
        _ = Experiment.from_yaml(TINY, *options, "train.lr=1e-2").history


def test_pandas_is_not_imported_before_it_is_needed():
    import subprocess
    import sys

    code = "import reptile_distil.runs.history, sys; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
