"""A configuration's teacher audited, from YAML to the table."""

import shutil

import numpy as np
import pytest
import torch
import transformers

from reptile_distil import Experiment
from reptile_distil.audit.run import AuditSettings, audit, check_audit
from reptile_distil.config.config import load_config
from reptile_distil.errors import ConfigError, DivergedError, ModelError, ReptileDistilError
from tests.helpers.paths import TINY

FEW = AuditSettings(stages=(0.0, 0.5), num_batches=2, num_probe_rows=8)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    experiment = Experiment.from_yaml(TINY, f"runs_dir={tmp_path_factory.mktemp('runs')}")
    experiment.fit_teacher()
    return experiment.teacher_folder.model


@pytest.fixture
def config(teacher):
    def config(*overrides):
        options = ("data.validation_fraction=0.3", "train.epochs=2", f"teacher.finetuned={teacher}")
        return load_config(TINY, [*options, *overrides])

    return config


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=lgtm",),
        ("method=reptile", "loss.hidden=0.1", "train.micro_batch_size=4", "reptile.share_forward=false"),
        ("method=reptile", "loss.hidden=0.1", "loss.hidden_projection=learned"),
        pytest.param(
            ("method=reptile", "reptile.inner_steps=2", "reptile.share_forward=false"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_teacher_that_moves_is_measured_at_each_stage(config, overrides):
    reported = []
    stages = audit(config(*overrides), FEW, lambda stages: reported.append([stage.step for stage in stages]))
    assert reported == [[0], [0, stages[1].step]]
    for stage in stages:
        assert len(stage.measured) == 2
        assert all({"before", "frozen", "so_far", "moved"} <= of_batch.keys() for of_batch in stage.measured)
    assert stages[0].column("frozen") == stages[0].column("so_far")
    assert stages[1].column("frozen") != stages[1].column("so_far")


def test_a_stage_is_measured_again_to_the_bit_whatever_was_measured_before_it(config):
    both = audit(config("method=reptile"), FEW, lambda stages: None)
    (late,) = audit(config("method=reptile"), FEW._replace(stages=(0.5,)), lambda stages: None)
    assert late.measured == both[1].measured != both[0].measured


def test_that_no_step_changes_the_student_is_said(config, caplog):
    (stage,) = audit(config("method=reptile", "train.warmup_ratio=0.5"), FEW._replace(stages=(0,)), lambda stages: None)
    assert stage.column("before") == stage.column("frozen")
    assert "step 0: the learning rate is 0 there, so that no step changes the student" in caplog.text
    assert [len(of.rows) for of in stage.by_row] == 2 * [FEW.num_probe_rows]


def test_the_last_stage_is_before_the_last_step(config):
    (late,) = audit(config("method=reptile"), FEW._replace(stages=(0.99,)), lambda stages: None)
    assert late.step == 7
    assert late.column("frozen") != late.column("before")


def test_a_run_that_diverges_is_said(config):
    with pytest.raises(DivergedError, match=r"reptile on toy-sentence: step \d: loss is (nan|inf)"):
        audit(config("method=reptile", "train.lr=1e20"), FEW._replace(stages=(0.9,)), lambda stages: None)


def test_a_second_teacher_is_compared_with_the_first(config, teacher):
    stages = audit(config("method=kd"), FEW._replace(other=str(teacher)), lambda stages: None)
    for stage in stages:
        for of_batch in stage.measured:
            assert of_batch["other"] == of_batch["frozen"] != of_batch["before"]
            assert "moved" not in of_batch


@pytest.mark.parametrize(
    ("overrides", "settings", "message"),
    [
        (("method=finetune",), {}, r"method = 'finetune': an audit needs a teacher"),
        (("method=kd",), {}, r"its teacher does not move; give --other DIR"),
        (("data.validation_fraction=null",), {}, r"data.validation_fraction is not set: .* never on the dev split"),
        (("method=kd", "loss.extra_rows=1"), {"other": "x"}, r"loss.extra_rows: the steps .* set it to 0"),
        (("train.patience=1",), {}, r"train.patience: an audit takes a run's steps at fixed points"),
        (("compute.cuda_graphs=true",), {}, r"compute.cuda_graphs = True: .*; use false"),
        ((), {"stages": (1.0,)}, r"--stages 1: expected fractions of the run, from 0 to below 1"),
        ((), {"stages": (-0.1, 0.5)}, r"--stages -0.1 0.5"),
        ((), {"num_batches": 1}, r"--batches 1: expected at least 2"),
        ((), {"num_probe_rows": 0}, r"--probe-rows 0: expected at least 2"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_sentence(config, overrides, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_audit(config(*overrides), FEW._replace(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_probe_rows": 500}, r"--probe-rows 500: only 21 training rows are held out"),
        ({"other": "./gone"}, r"gone: no such folder"),
        ({"other": str(TINY)}, r"tiny.yaml"),
        ({"other": str(TINY.parent)}, r"no model or tokenizer can be loaded from this folder: .* `?model_type`?"),
    ],
)
def test_what_only_the_files_show_is_refused_before_a_teacher_is_trained(tmp_path, settings, message):
    config = load_config(TINY, ["data.validation_fraction=0.3", f"runs_dir={tmp_path}"])
    with pytest.raises(ReptileDistilError, match=message):
        audit(config, FEW._replace(**settings), lambda stages: None)
    assert not Experiment(config).teacher_folder.results.exists()


@pytest.mark.parametrize(
    "options",
    [
        ("method=reptile", "reptile.every=3", "reptile.share_forward=false", "reptile.mu=0.05"),
        pytest.param(("method=lgtm", "lgtm.every=3", "lgtm.teacher_lr=0.05"), marks=pytest.mark.slow),
    ],
)
def test_a_stage_comes_before_a_step_that_moves_the_teacher(config, options):
    """Else one move would be none, for all batches of the stage."""
    stages = audit(config(*options), FEW._replace(stages=(0.2, 0.6)), lambda stages: None)
    assert [stage.step for stage in stages] == [0, 3]  # of 8 steps: instead of 2 and 5
    for stage in stages:
        assert all(moved != so_far for moved, so_far in zip(stage.column("moved"), stage.column("so_far"), strict=True))


@pytest.mark.parametrize("terms", [pytest.param((), marks=pytest.mark.slow), ("loss.hidden=0.1",)])
def test_a_second_teacher_of_another_shape_is_taken_where_the_loss_compares_logits_alone(config, tmp_path, terms):
    deeper = Experiment.from_yaml(TINY, f"runs_dir={tmp_path}", "teacher.pretrained=toy-bert-4L-16H")
    deeper.fit_teacher()
    settings = FEW._replace(stages=(0.0,), other=str(deeper.teacher_folder.model))
    if not terms:
        (stage,) = audit(config("method=kd"), settings, lambda stages: None)
        assert len(stage.column("other")) == 2
        return
    with pytest.raises(ConfigError, match=r"--other .*: it has 4 layers of .*, the run's teacher 2 layers of width 16"):
        audit(config("method=kd", *terms), settings, lambda stages: None)


def test_a_second_teacher_that_reads_other_tokens_is_refused_by_the_names_of_both(config, teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "wider")
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_tokens(["unheard"])
    tokenizer.save_pretrained(tmp_path / "wider")
    message = r"teacher .*wider and student toy-bert-2L-16H have different vocabularies: give --other one that reads"
    with pytest.raises(ModelError, match=message):
        audit(config("method=kd"), FEW._replace(other=str(tmp_path / "wider")), lambda stages: None)


def test_transfer_rows_count_in_no_balanced_weight(config):
    options = ("data.transfer.labelled_rows=16", "loss.class_weights=balanced", "method=reptile")
    (stage,) = audit(config(*options), FEW._replace(stages=(0.0,)), lambda stages: None)
    assert all(np.isfinite(value) for value in stage.measured[0].values())


def test_the_names_of_a_teacher_from_elsewhere_are_not_those_of_a_second_one_of_a_run(config, teacher, tmp_path):
    """The same model twice: once as a run has saved it, once with its labels the other way round, and without names."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(teacher)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter.flip(0))
    model.config.id2label, model.config.label2id = {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}
    model.save_pretrained(tmp_path / "elsewhere")
    transformers.AutoTokenizer.from_pretrained(teacher).save_pretrained(tmp_path / "elsewhere")
    turned = (f"teacher.finetuned={tmp_path}/elsewhere", "teacher.label_names=[positive, negative]")
    stages = audit(config("method=kd", *turned), FEW._replace(other=str(teacher)), lambda stages: None)
    assert stages[0].column("other") == pytest.approx(stages[0].column("frozen"), abs=1e-6)
    assert stages[0].column("other") != stages[0].column("before")
