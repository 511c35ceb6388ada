"""What is computed once and kept: a frozen teacher's logits and both models' latency. It changes no bit of a run."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch

from reptile_distil import Experiment
from reptile_distil.config.config import load_config
from reptile_distil.data import cache as data_cache
from reptile_distil.experiments import teachers as kept
from reptile_distil.experiments.dry_run import plan_distillation
from reptile_distil.experiments.setup import build_training_batches
from reptile_distil.models.classifier import Teacher
from tests.helpers.experiments import weights_of
from tests.helpers.paths import TINY

ROUNDING = 1e-5
"""What a logit may change by with the rows that it is computed beside, and a weight after the run's ten steps."""


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Folders of two fine-tuned teachers."""
    folder = tmp_path_factory.mktemp("teachers")
    fitted = [Experiment.from_yaml(TINY, f"runs_dir={folder}", f"seed={seed}") for seed in (42, 3)]
    for experiment in fitted:
        experiment.fit_teacher()
    return [experiment.teacher_folder.model for experiment in fitted]


@pytest.fixture
def kd(tiny, teachers, cache, tmp_path):
    """A run of kd over two epochs, in a folder of its own, with a teacher that is fine-tuned already."""
    numbers = iter(range(100))

    def kd(*options):
        return tiny(
            "method=kd",
            "train.epochs=2",
            f"data.cache_dir={cache}",
            f"teacher.finetuned={teachers[0]}",
            f"output_dir={tmp_path}/kd-{next(numbers)}",
            *options,
        )

    return kd


@pytest.fixture
def asked(monkeypatch):
    """Rows that the teacher was asked about in steps, and in whole passes over rows."""
    rows = {"steps": 0, "passes": 0}
    targets, predict = Teacher.targets, kept.predict_logits

    def counted_targets(teacher, batch, **options):
        rows["steps"] += len(batch["input_ids"])
        return targets(teacher, batch, **options)

    def counted_predict(model, batches, *arguments, **options):
        rows["passes"] += batches.num_rows
        return predict(model, batches, *arguments, **options)

    monkeypatch.setattr(Teacher, "targets", counted_targets)
    monkeypatch.setattr(kept, "predict_logits", counted_predict)
    return rows


def same_bits(first, second):
    ours, theirs = weights_of(first), weights_of(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("options", "is_kept"),
    [
        ([], True),
        (["train.epochs=1"], True),
        (["train.max_steps=5"], True),  # all 70 rows once
        (["train.max_steps=4"], False),
        (["train.max_steps=4", "kd.keep_logits=true"], True),
        (["kd.keep_logits=false"], False),
        (["loss.hidden=1"], False),
        (["loss.patient=1", "student.num_layers=2"], False),
        (["method=reptile"], False),
        (["method=reptile", "reptile.order=student_first"], False),
        (["method=metadistil"], False),
    ],
)
def test_a_teacher_that_stays_is_asked_about_each_training_row_once(kd, asked, options, is_kept):
    experiment = kd(*options)
    experiment.fit()
    assert (asked["steps"] == 0) is is_kept or experiment.config.method != "kd"
    assert asked["passes"] == 500 + 70 * is_kept, "the dev rows, and the training rows where they are kept"


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["train.micro_batch_size=5"],
        ["data.packing=true"],
        ["data.validation_fraction=0.3"],
        ["train.eval_batch_size=7"],
        ["loss.soft=mse"],
        ["precision=bf16"],
    ],
    ids=lambda options: " ".join(options) or "as it is",
)
def test_a_run_on_kept_logits_is_the_run_without_them_up_to_rounding(kd, options):
    """A logit depends in its last bits on the rows that it is computed beside; in bfloat16 these are worth 1 %."""
    on_kept, on_the_fly = kd(*options), kd(*options, "kd.keep_logits=false")
    first, second = on_kept.fit(), on_the_fly.fit()
    tolerance = 5e-3 if "precision=bf16" in options else ROUNDING
    for name, weight in weights_of(on_the_fly).items():
        torch.testing.assert_close(weights_of(on_kept)[name], weight, rtol=0, atol=tolerance, msg=name)
    assert first["teacher"] == second["teacher"]
    assert first["num_steps"] == second["num_steps"]


def test_the_kept_logits_are_those_of_each_row_alone(kd):
    experiment = kd()
    components, _ = experiment.prepare("kd")
    train, teacher = components.data["train"], components.teacher
    keeper = kept.TeacherLogits(experiment.setup, teacher, components.fingerprints()["teacher"])
    keeper.for_training(train, train.features.fingerprint())
    for row in range(0, train.num_rows, 7):
        batch = train.batch(np.array([row]))
        alone = teacher.soft_labels(batch)
        torch.testing.assert_close(batch["teacher_logits"], alone, rtol=0, atol=ROUNDING)


def flip(entry):
    content = bytearray((entry / "logits.npy").read_bytes())
    content[-3] ^= 1
    (entry / "logits.npy").write_bytes(content)


def cut(entry):
    content = (entry / "logits.npy").read_bytes()
    (entry / "logits.npy").write_bytes(content[:-5])


def empty(entry):
    (entry / "logits.npy").write_bytes(b"")


def unlist(entry):
    (entry / "entry.json").write_text("{")


def leave(entry):
    pass


@pytest.mark.parametrize("damage", [leave, flip, cut, empty, unlist, shutil.rmtree])
def test_what_is_found_damaged_or_gone_changes_no_bit(kd, cache, asked, damage):
    first = kd()
    first.fit()
    logits = [file.parent for file in cache.glob("*/logits.npy")]
    assert len(logits) == 2, "training and dev rows"
    before = dict(asked)
    for entry in logits:
        damage(entry)
    second = kd()
    second.fit()
    made_again = asked["passes"] - before["passes"]
    assert made_again == (0 if damage is leave else 570)
    assert same_bits(first, second)
    third = kd()
    third.fit()
    assert asked["passes"] == before["passes"] + made_again, "what was damaged is whole again"


def full(*arguments, **options):
    raise OSError(28, "No space left on device")


def test_where_nothing_can_be_kept_a_warning_says_so_and_no_bit_changes(kd, monkeypatch, caplog, tmp_path):
    first, nowhere, on_a_full_disk = kd(), kd("data.cache_dir=false"), kd(f"data.cache_dir={tmp_path}/full")
    first.fit()
    nowhere.fit()
    assert "cannot be kept" not in caplog.text
    monkeypatch.setattr(data_cache.np, "save", full)
    on_a_full_disk.fit()
    assert "a teacher's logits cannot be kept there (No space left on device): going on without" in caplog.text
    assert same_bits(first, nowhere)
    assert same_bits(first, on_a_full_disk)
    assert not list((tmp_path / "full").iterdir())


@pytest.mark.parametrize("kept_between", [True, False])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(kd, cache, kept_between, tmp_path):
    class Stop:
        def on_step_end(self, run, step, logs, rates):
            if step == 7:
                raise RuntimeError("stopped")

    whole = kd()
    whole.fit()
    options = ["checkpoint.every_steps=3", f"output_dir={tmp_path}/stopped"]
    stopped = kd(*options)
    stopped.callbacks = (Stop(),)
    with pytest.raises(Exception, match="stopped"):
        stopped.fit()
    if not kept_between:
        shutil.rmtree(cache)
    again = kd(*options)
    again.fit()
    assert same_bits(whole, again)


@pytest.mark.parametrize(
    ("options", "are_shared"),
    [
        (["seed=7"], True),
        (["loss.temperature=2.0", "loss.alpha=0.9"], True),
        (["student.init=random"], True),
        (["train.batch_size=8"], True),
        (["data.max_length=8"], False),
        (["data.max_train_rows=69"], False),
        (["precision=bf16"], False),
        (["teacher.finetuned={other}"], False),
    ],
    ids=lambda options: " ".join(options) if isinstance(options, list) else str(options),
)
def test_runs_with_the_same_teacher_and_rows_share_them(kd, teachers, asked, options, are_shared):
    kd("train.epochs=1").fit()
    before = asked["passes"]
    kd("train.epochs=1", *(option.format(other=teachers[1]) for option in options)).fit()
    assert (asked["passes"] == before) is are_shared


def test_both_models_latency_is_measured_once_for_a_pair_of_shapes(kd, monkeypatch, tmp_path):
    measured = []
    real = kept.compare_latency
    monkeypatch.setattr(
        kept, "compare_latency", lambda *models, **options: measured.append(1) or real(*models, **options)
    )
    first, second = kd("train.epochs=1").fit(), kd("train.epochs=1", "seed=2").fit()
    assert len(measured) == 1
    assert first["latency"] == second["latency"]
    kd("train.epochs=1", "student.num_layers=2").fit()
    kd("train.epochs=1", "data.max_length=16").fit()
    assert len(measured) == 3, "another depth, another length"


def test_what_a_run_spent_on_its_logits_counts_as_training(kd, monkeypatch):
    real = kept.predict_logits

    def slow(*arguments, **options):
        ticks[0] += 1000.0
        return real(*arguments, **options)

    ticks = [0.0]
    monkeypatch.setattr(kept, "predict_logits", slow)
    monkeypatch.setattr(kept.time, "perf_counter", partial(lambda real: real() + ticks[0], kept.time.perf_counter))
    assert 1000 < kd().fit()["train_seconds"] < 1900, "made by this run; the dev rows' are no training"
    assert kd().fit()["train_seconds"] < 900, "found"


@pytest.mark.parametrize("method", ["kd", "reptile", "finetune", "metadistil"])
def test_keeping_is_no_part_of_what_a_run_is(method):
    """So that runs made before there was such a key, or with another value of it, are found and go on."""
    settings = [
        load_config(TINY, [f"method={method}", "compare_with=[kd]", f"kd.keep_logits={value}"]).defining_settings(
            method
        )
        for value in ("null", "false", "true")
    ]
    assert settings[0] == settings[1] == settings[2]
    assert not [key for key in settings[0] if key.startswith("kd.")]


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_dry_run_takes_kept_logits_for_granted_and_counts_what_they_cost(kd, asked, monkeypatch, is_kept):
    experiment = kd()
    if is_kept:
        experiment.fit()
    asked.update(steps=0, passes=0)
    fresh = kd()
    plan = plan_distillation(fresh.config)
    assert asked == {"steps": 0, "passes": 0}
    components, _ = fresh.prepare("kd")
    train = components.data["train"]
    keeper = kept.TeacherLogits(fresh.setup, components.teacher, components.fingerprints()["teacher"])
    left = keeper.pretend_for_training(train, train.features.fingerprint())
    assert (left is None) is is_kept
    assert plan.runs[0].measured.trial.once_seconds > 0
    assert not fresh.folder.path.exists()


def test_extra_batches_bring_no_logits(kd):
    experiment = kd("method=reptile", "reptile.inner_steps=2", "reptile.share_forward=false")
    components, _ = experiment.prepare("reptile")
    train = build_training_batches(experiment.config, experiment.task, components.tokenizer)
    train.teacher_logits = np.zeros((train.num_rows, 2), np.float32)
    other = train.in_batches_of(3)
    assert (other.batch_size, other.teacher_logits, other.extra_batches) == (3, None, None)
    assert train.batch_size == 16
    assert "teacher_logits" in next(train.epoch(1))
    assert "teacher_logits" not in next(other.epoch(1))


@pytest.mark.parametrize(
    ("options", "is_let_go"),
    [([], True), (["kd.keep_logits=false"], False), (["loss.hidden=1"], False), (["method=reptile"], False)],
)
def test_a_teacher_that_is_asked_nothing_more_takes_no_memory(kd, monkeypatch, options, is_let_go):
    teachers, seen = [], []
    real = kept.TeacherLogits.__init__

    def remembered(keeper, setup, teacher, fingerprint):
        teachers.append(teacher)
        real(keeper, setup, teacher, fingerprint)

    class Look:
        def on_step_end(self, run, step, logs, rates):
            seen.append(all(weight.is_meta for weight in teachers[0].parameters()))

    monkeypatch.setattr(kept.TeacherLogits, "__init__", remembered)
    experiment = kd(*options)
    experiment.callbacks = (Look(),)
    results = experiment.fit()
    assert set(seen) == {is_let_go}
    assert results["teacher"]["num_parameters"] == sum(weight.numel() for weight in teachers[0].parameters())
    assert results["latency"]["batches"].keys() == {"1", "32"}


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("data.validation_fraction=0.2",),
        ("precision=bf16",),
    ],
    ids=str,
)
def test_a_teachers_run_leaves_its_dev_logits_to_its_students(tiny, cache, asked, monkeypatch, tmp_path, options):
    logits, of = [], kept.TeacherLogits.of

    def recorded(self, *arguments):
        result = of(self, *arguments)
        logits.append(result[0])
        return result

    monkeypatch.setattr(kept.TeacherLogits, "of", recorded)
    shared = (f"data.cache_dir={cache}", "method=kd", "kd.keep_logits=false", *options)
    found = tiny(*shared, f"runs_dir={tmp_path}/found")
    found.fit_teacher()
    found.fit()
    assert asked["passes"] == 0
    teacher = found.teacher_folder
    again = tiny(
        "data.cache_dir=false", *shared[1:], f"teacher.finetuned={teacher.model}", f"output_dir={tmp_path}/again"
    )
    again.fit()
    assert asked["passes"] > 0
    half = len(logits) // 2
    assert half > 0
    for first, second in zip(logits[:half], logits[half:], strict=True):
        assert np.array_equal(first, second)
    assert same_bits(found, again)
