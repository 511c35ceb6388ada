"""Runs with transfer rows, from the YAML to the results: which rows have labels, and that no hidden one is read."""

import json
import logging

import numpy as np
import pytest
import torch

from reptile_distil import Experiment
from reptile_distil.config.config import load_config
from reptile_distil.errors import CallbackError, ConfigError, DataError, RunError
from reptile_distil.experiments.build_task import load_rows
from reptile_distil.experiments.dry_run import plan_distillation
from reptile_distil.experiments.dry_run_text import describe_plan
from reptile_distil.experiments.finished_run import open_finished_run
from reptile_distil.experiments.setup import build_training_batches
from reptile_distil.models.tokenizer import Tokenizers, load_tokenizer
from tests.helpers.experiments import weights_of
from tests.helpers.paths import TINY

HIDDEN = "data.transfer.labelled_rows=20"  # of 70 training rows
WORDS = ("good", "bad", "film", "plot", "scene")


def text(row):
    return " ".join(WORDS[(row * step + row) % len(WORDS)] for step in range(1, 3 + row % 4))


def write(file, rows, *, label=lambda row: ("negative", "positive")[row % 2]):
    """Lines of JSON, without labels where there is no `label`."""
    records = [{"text": text(row), **({} if label is None else {"label": label(row)})} for row in rows]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def own(tmp_path):
    """An experiment on files of its own, of 40 training rows, in a folder `data`; `kind` of labels."""
    data = tmp_path / "data"
    data.mkdir()
    kinds = {
        "classes": (lambda row: ("negative", "positive")[row % 2], "accuracy", "labels: [negative, positive]"),
        "scores": (lambda row: row / 10, "pearson", ""),
        "sets": (lambda row: ["fun"] * (row % 2) + ["sad"] * (row % 3 == 0), "f1_macro", "labels: [fun, sad]"),
    }

    def own(*overrides, kind="classes", corrupted=()):
        label, metric, labels = kinds[kind]
        write(data / "train.jsonl", range(40), label=lambda row: label(row + 1 if row in corrupted else row))
        write(data / "dev.jsonl", range(50, 62), label=label)
        multi_label = "multi_label: true" if kind == "sets" else ""
        lines = ["task:", "  name: mine", "  text: [text]", f"  metrics: [{metric}]", f"  {labels}", f"  {multi_label}"]
        lines += ["  files: {train: train.jsonl, dev: dev.jsonl}"]
        config = tmp_path / "own.yaml"
        config.write_text("\n".join([f"extends: {TINY}", *lines]))
        settings = (
            f"data.path={data}",
            f"runs_dir={tmp_path}/runs",
            "data.cache_dir=false",
            "data.max_train_rows=null",
        )
        return Experiment.from_yaml(config, *settings, *overrides)

    return own


def hidden_rows(experiment):
    config, tokenizer = experiment.config, load_tokenizer(experiment.config.teacher.pretrained)
    labelled = load_rows(config, experiment.task, "train", Tokenizers(tokenizer), for_training=True)
    return sorted(set(range(40)) - set(labelled.row_ids.tolist()))


def training_batches(*overrides):
    config = load_config(TINY, overrides)
    experiment = Experiment(config)
    return build_training_batches(config, experiment.task, load_tokenizer(config.teacher.pretrained)), experiment


@pytest.mark.parametrize(
    "method",
    [
        "kd",
        "lgtm",
        "finetune",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("reptile", "metadistil", "cotrain")),
    ],
)
def test_results_count_both_kinds_of_rows_and_the_teacher_learns_from_labels_alone(tiny, method):
    experiment = tiny(f"method={method}", HIDDEN)
    results = experiment.fit()
    quiz = 2 if method in ("lgtm", "metadistil") else 0
    expected = (20 - quiz, None if method == "finetune" else 50)
    assert (results["num_train_rows"], results.get("num_transfer_rows")) == expected
    if method != "finetune":
        teacher = json.loads(experiment.teacher_folder.results.read_text())
        assert (teacher["num_train_rows"], teacher.get("num_transfer_rows")) == (20, None)
        assert "rows without labels" in results._repr_html_()


QUIZZES = {
    "kd": (),
    "kd with extra rows": ("method=kd", "loss.extra_rows=1"),
    "reptile": ("method=reptile",),
    "held out": ("method=reptile", "reptile.inner_batch=held_out", "reptile.share_forward=false"),
    "prokt": ("method=prokt",),
    "lgtm": ("method=lgtm",),
    "metadistil": ("method=metadistil",),
    "checkpoints": ("method=checkpoints",),
}


@pytest.mark.parametrize("validation", [(), ("data.validation_fraction=0.2",)])
@pytest.mark.parametrize("source", [HIDDEN, "data.transfer.fraction=0.6"])
def test_no_row_is_of_two_kinds_and_all_methods_hide_the_same_labels(source, validation):
    hidden = {}
    for name, options in QUIZZES.items():
        train, experiment = training_batches(source, *validation, *options)
        features, tokenizer = train.features, load_tokenizer(experiment.config.teacher.pretrained)
        kinds = [features.labelled.row_ids, features.row_ids[~features.is_labelled]]
        if "inner" not in name and train.extra_batches is not None:
            kinds.append(train.extra_batches.features.row_ids)
            assert (train.extra_batches.features.labels >= 0).all()
        if validation:
            tokenizers = Tokenizers(tokenizer)
            kinds.append(
                load_rows(experiment.config, experiment.task, "validation", tokenizers, for_training=False).row_ids
            )
        together = np.concatenate(kinds)
        assert len(set(together)) == len(together) == 70
        hidden[name] = kinds[1].tolist()
    assert len(hidden["kd"]) == (36 if validation else 50) if source == HIDDEN else len(hidden["kd"]) > 20
    assert all(rows == hidden["kd"] for rows in hidden.values())


def test_a_ratio_of_0_leaves_the_same_labelled_rows_and_their_teacher():
    with_rows, experiment = training_batches("method=kd", HIDDEN)
    alone, control = training_batches("method=kd", HIDDEN, "data.transfer.ratio=0")
    assert alone.num_transfer_rows == 0
    assert with_rows.features.labelled.row_ids.tolist() == alone.features.row_ids.tolist()
    settings = [one.config.defining_settings("teacher") for one in (experiment, control)]
    assert settings[0] == settings[1]
    assert settings[0]["data.transfer.labelled_rows"] == 20
    assert [one.config.defining_settings("kd").get("data.transfer.ratio") for one in (experiment, control)] == [None, 0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("classes", ("method=kd", "kd.keep_logits=true", "loss.class_weights=balanced")),
        pytest.param("classes", ("method=reptile", "reptile.task_lr=1e-3"), marks=pytest.mark.slow),
        pytest.param("scores", ("method=prokt",), marks=pytest.mark.slow),
        pytest.param("sets", ("method=kd", "loss.class_weights=balanced"), marks=pytest.mark.slow),
    ],
)
def test_corrupting_hidden_labels_changes_not_one_bit_of_teacher_and_student(own, tmp_path, kind, options):
    hide = "data.transfer.labelled_rows=16"
    ends = []
    for name, corrupted in (("true", ()), ("false", hidden_rows(own(hide)))):
        assert len(corrupted) in (0, 24)
        experiment = own(hide, *options, f"runs_dir={tmp_path}/{name}", kind=kind, corrupted=corrupted)
        experiment.fit()
        assert experiment.fit()["num_transfer_rows"] == 24
        ends.append(weights_of(experiment))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    # Those that are not hidden do change them.
    experiment = own(hide, *options, f"runs_dir={tmp_path}/other", kind=kind, corrupted=range(40))
    experiment.fit()
    assert any(not torch.equal(ends[0][name], value) for name, value in weights_of(experiment).items())


def test_files_bring_rows_whose_label_column_is_not_read(own, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write(tmp_path / "data" / "more.jsonl", range(100, 130), label=lambda row: "no label of this task")
    (tmp_path / "data" / "again.csv").write_text('text,id\ngood film,1\n"a bad, bad plot",2\n')
    experiment = own("method=kd", "data.transfer.files=[more.jsonl, again.csv]", "train.epochs=2")
    results = experiment.fit()
    assert (results["num_train_rows"], results["num_transfer_rows"]) == (40, 32)
    assert "more.jsonl: column label is not read: transfer rows have no labels" in caplog.text
    assert "again.csv: column" not in caplog.text
    assert {"transfer file 1", "transfer file 2"} <= set(results["inputs"])
    teacher = json.loads(experiment.teacher_folder.results.read_text())
    assert not [name for name in (*teacher["inputs"], *teacher["decisive"]) if "transfer" in name]


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        (range(100, 130), (), []),
        (range(58, 70), (), ["4 of the 12 rows of dev"]),  # of 50 to 61
        (range(40), ("data.validation_fraction=0.2",), ["8 of the 8 rows of validation"]),
    ],
)
def test_transfer_rows_that_are_scored_too_are_said(own, tmp_path, caplog, rows, options, said):
    numbered = [{"text": " ".join(WORDS[row // 5**place % 5] for place in range(4))} for row in range(130)]
    for name, of_file in (("train", range(40)), ("dev", range(50, 62)), ("more", rows)):
        labelled = [numbered[row] | ({} if name == "more" else {"label": "positive"}) for row in of_file]
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in labelled))
    experiment = own("method=kd", "data.transfer.files=[more.jsonl]", *options)
    for name in ("train", "dev", "more"):
        (tmp_path / name).rename(tmp_path / "data" / f"{name}.jsonl")
    experiment.setup.prepare_student(experiment.config.teacher.pretrained, stand_in=True)
    warned = [
        record.getMessage() for record in caplog.records if "are in data.transfer.files too" in record.getMessage()
    ]
    assert len(warned) == len(said)
    assert all(line.startswith(part) for part, line in zip(said, warned, strict=True))


def test_a_transfer_file_that_has_changed_since_is_noticed(own, tmp_path):
    file = tmp_path / "data" / "more.jsonl"
    write(file, range(100, 130), label=None)
    experiment = own("method=kd", "data.transfer.files=[more.jsonl]")
    experiment.fit()
    write(file, range(100, 131), label=None)
    with pytest.raises(RunError, match="the transfer file 1 has changed since this run was made"):
        open_finished_run(experiment.folder, experiment.config, experiment.task, "kd")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "data.transfer.files: .*gone.jsonl: no such file"),
        ("bad.jsonl", '{"text": "a"}\n{"txt": "b"}\n', r"bad.jsonl, line 2: no key 'text', the keys are 'txt'"),
        ("bad.csv", "text,id\na,1\nb\n", r"bad.csv, line 3: expected 2 fields, found 1"),
        ("bad.tsv", "review\na\n", r"bad.tsv, line 1: no column 'text', the columns are 'review'"),
        ("empty.csv", "text\n", r"empty.csv has no rows"),
        ("rows.txt", "a\n", r"rows.txt: unknown kind of file"),
    ],
)
def test_a_malformed_transfer_file_is_refused_before_a_teacher_is_trained(own, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / "data" / name).write_text(content)
    experiment = own("method=kd", f"data.transfer.files=[{name}]")
    with pytest.raises(DataError, match=message):
        experiment.fit()
    assert not experiment.teacher_folder.results.exists()


@pytest.mark.parametrize(
    "options",
    [("method=kd",), pytest.param(("method=reptile", "reptile.order=student_first"), marks=pytest.mark.slow)],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tiny, tmp_path, options):
    """In the second epoch, whose transfer rows go on where the first one's ended."""

    class Fails:
        def on_step_end(self, run, step, logs, rates):
            if run.method != "teacher" and step == 5:
                raise ValueError("here")

    settings = (*options, HIDDEN, "train.epochs=3", "data.transfer.ratio=0.5")
    whole = tiny(*settings, "output_dir=" + str(tmp_path / "whole"))
    whole.fit()
    stopped = tiny(*settings, "output_dir=" + str(tmp_path / "stopped"))
    with pytest.raises(CallbackError):
        Experiment(stopped.config, callbacks=[Fails()]).fit()
    stopped.fit()
    expected, found = weights_of(whole), weights_of(stopped)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_kept_logits_are_those_of_each_row_labelled_or_not(tiny):
    experiment = tiny("method=kd", HIDDEN, "kd.keep_logits=true", "train.epochs=3")
    experiment.fit()
    setup, name = experiment.setup, str(experiment.teacher_folder.model)
    components = setup.prepare_student(name)
    train, teacher = components.data["train"], components.teacher
    from reptile_distil.experiments.teachers import TeacherLogits

    kept = TeacherLogits(setup, teacher, components.fingerprints()["teacher"])
    kept.for_training(train, train.features.fingerprint())
    for batch in train.epoch(1):
        assert (batch["labels"] < 0).any()
        torch.testing.assert_close(batch["teacher_logits"], teacher.soft_labels(batch), rtol=0, atol=1e-5)


def test_logits_are_kept_by_themselves_where_every_transfer_row_is_seen(tiny):
    """A third of them in one epoch: then keeping all would cost more than it saves."""
    from reptile_distil.experiments.teachers import keeps_training_logits

    for epochs, kept in ((1, False), (3, True)):
        experiment = tiny("method=kd", HIDDEN, f"train.epochs={epochs}")
        train = build_training_batches(
            experiment.config, experiment.task, load_tokenizer(experiment.config.teacher.pretrained)
        )
        assert keeps_training_logits(experiment.config, "kd", train) is kept


@pytest.mark.slow
def test_packing_and_micro_batches_take_mixed_batches_too(tiny):
    plain = tiny("method=kd", HIDDEN).fit()
    parts = tiny("method=kd", HIDDEN, "data.packing=true", "train.micro_batch_size=3", "output_dir=null", "seed=42")
    parts = Experiment(parts.config.with_values(runs_dir=parts.config.runs_dir + "-parts"))
    assert parts.fit()["num_transfer_rows"] == plain["num_transfer_rows"] == 50


def test_a_dry_run_says_how_many_rows_of_each_kind(tmp_path):
    config = load_config(TINY, (HIDDEN, "method=kd", f"runs_dir={tmp_path}"))
    said = describe_plan(plan_distillation(config))
    assert "transfer 50 rows without labels" in " ".join(said.split())
    (teacher,) = (line for line in said.splitlines() if line.startswith("teacher") and "/" not in line and "20" in line)
    assert "+" not in teacher
    assert any(line.startswith("kd ") and " 20 + 50 " in line for line in said.splitlines())
    assert not list(tmp_path.rglob("results.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("data.transfer.fraction=0.5", HIDDEN), "fraction and labelled_rows are different ways to say"),
        (("data.transfer.files=[a.csv]", HIDDEN), "files and labelled_rows are different ways to say"),
        (("data.transfer.ratio=2",), "data.transfer: ratio has no effect without transfer rows"),
        (("data.transfer.seed=2",), "data.transfer: seed has no effect without transfer rows"),
        (("data.transfer.skip=2",), "data.transfer: skip has no effect without transfer rows"),
        (("data.transfer.files=[a.csv]", "data.transfer.seed=1"), "seed is about fraction and labelled_rows"),
        (("data.transfer.files=[a.csv]", "data.transfer.skip=1"), "skip is about fraction and labelled_rows"),
        (("data.transfer.files=[a.csv]", "data.transfer.ratio=0"), "ratio = 0 leaves no use for files"),
        (("data.transfer.files=[a.csv, a.csv]",), "a file is given twice"),
        (("data.transfer.fraction=1.0",), "data.transfer.fraction = 1.0: expected less than 1"),
        ((HIDDEN, "data.transfer.ratio=-1"), "data.transfer.ratio = -1"),
        ((HIDDEN, "data.transfer.ratio=100"), "ratio = 100 leaves no labelled row in a batch of train.batch_size = 16"),
        ((HIDDEN, "train.batch_size=1"), "ratio = 1 leaves no transfer row in a batch of train.batch_size = 1"),
        ((HIDDEN, "loss.alpha=0"), "loss.alpha = 0 leaves the teacher out of the loss, so data.transfer has no use"),
        ((HIDDEN, "method=finetune", "data.transfer.ratio=3"), "data.transfer.ratio has no effect on method finetune"),
        (("method=finetune", "data.transfer.files=[a.csv]"), "data.transfer.files has no effect on method finetune"),
        (("data.transfer.labeled_rows=20",), "did you mean 'data.transfer.labelled_rows'"),
    ],
)
def test_what_has_no_use_is_refused_in_one_sentence(options, message):
    with pytest.raises(ConfigError) as refused:
        load_config(TINY, options)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_regression_without_a_distillation_term_refuses_transfer_rows(own):
    with pytest.raises(ConfigError, match=r"loss.regression = none leaves the regression mine without a distillation"):
        own("data.transfer.fraction=0.5", "loss.regression=none", kind="scores")


@pytest.mark.parametrize("term", ["loss.hidden=1", "loss.relations={weight: 1, heads: 2}", "loss.attention.weight=1"])
def test_a_regression_whose_only_term_is_on_hidden_outputs_may_have_transfer_rows(own, term):
    own("data.transfer.fraction=0.5", "loss.regression=none", term, kind="scores")


@pytest.mark.parametrize("number", [70, 512])
def test_more_labelled_rows_than_there_are_others_beside_are_refused_before_anything_is_trained(tiny, number):
    experiment = tiny("method=kd", f"data.transfer.labelled_rows={number}")
    with pytest.raises(DataError, match=f"data.transfer: {number} of 70 training rows would keep their labels"):
        experiment.fit()
    assert not experiment.teacher_folder.results.exists()


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("lgtm.quiz_fraction", ("method=lgtm",)),
        ("metadistil.quiz_fraction", ("method=metadistil",)),
        ("loss.extra_fraction", ("method=kd", "loss.extra_rows=1")),
        (
            "reptile.held_out_fraction",
            ("method=reptile", "reptile.inner_batch=held_out", "reptile.share_forward=false"),
        ),
    ],
)
@pytest.mark.parametrize("rows", ["data.transfer.labelled_rows=3", "data.max_train_rows=3"])
def test_too_few_labelled_rows_for_a_quiz_are_refused_before_a_teacher_is_trained(tiny, key, options, rows):
    experiment = tiny(*options, rows)
    with pytest.raises(DataError, match=rf"^{key} = 0.1: of 3 training rows it holds out 0; give a larger fraction"):
        experiment.fit()
    assert not experiment.teacher_folder.results.exists()


def test_too_few_rows_for_a_validation_name_its_key(tiny):
    with pytest.raises(DataError, match=r"^data.validation_fraction = 0.001: of 70 training rows it holds out 0; give"):
        tiny("method=finetune", "data.validation_fraction=0.001").fit()


def test_runs_from_before_there_were_transfer_rows_are_known_again():
    """None of its keys is among the settings that decide a run without them."""
    for role in ("teacher", "finetune", "kd", "reptile"):
        assert not [key for key in load_config(TINY).defining_settings(role) if "transfer" in key]
