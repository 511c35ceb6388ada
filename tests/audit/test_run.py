"""A configuration's teacher audited, from YAML to the table."""

import pytest

from reptile_distil import Experiment
from reptile_distil.audit.run import AuditSettings, audit, check_audit
from reptile_distil.config.config import load_config
from reptile_distil.errors import ConfigError
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
        ("method=reptile",),
        ("method=lgtm",),
        ("method=reptile", "loss.hidden=0.1", "train.micro_batch_size=4", "reptile.share_forward=false"),
        ("method=reptile", "loss.hidden=0.1", "loss.hidden_projection=learned"),
        ("method=reptile", "reptile.inner_steps=2", "reptile.share_forward=false"),
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


def test_two_audits_measure_the_same(config):
    first, second = (audit(config("method=reptile"), FEW, lambda stages: None) for _ in range(2))
    assert [stage.measured for stage in first] == [stage.measured for stage in second]


def test_a_stage_does_not_depend_on_what_was_measured_before_it(config):
    both = audit(config("method=reptile"), FEW, lambda stages: None)
    (late,) = audit(config("method=reptile"), FEW._replace(stages=(0.5,)), lambda stages: None)
    assert late.measured == both[1].measured != both[0].measured


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


def test_more_probe_rows_than_are_held_out_are_refused(config):
    with pytest.raises(ConfigError, match=r"--probe-rows 500: only 21 training rows are held out"):
        audit(config(), FEW._replace(num_probe_rows=500), lambda stages: None)
