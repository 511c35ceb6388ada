"""A run with dropout is taken up again with the device's random numbers as they were."""

import copy
import itertools
import json

import pytest
import torch
import transformers

from reptile_distil.experiments.experiment import Experiment
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.models.toy import toy_config, toy_tokenizer
from reptile_distil.runs import state
from tests.helpers.paths import TINY
from tests.pretend_gpu.cases.steps import RAGGED, build, given, take


def losses_after_a_restore(restore):
    """The losses of two steps with dropout, and of the same two steps behind `restore(state at their start)`."""
    method, batches = build("kd", dropout=0.5), given("kd", RAGGED)
    take(method, batches)
    weights, moments = (copy.deepcopy(x.state_dict()) for x in (method.student, method.gradient_step.optimizer))
    saved = state.random_tensors("cuda")
    first = [float(take(method, batches)["loss"]) for _ in range(2)]
    method.student.load_state_dict(weights)
    method.gradient_step.optimizer.load_state_dict(moments)
    restore(saved)
    return first, [float(take(method, batches)["loss"]) for _ in range(2)]


def test_restored_random_numbers_draw_the_same_dropout_masks(gpu):
    first, second = losses_after_a_restore(lambda saved: state.load_random(saved, "cuda"))
    assert first == second


@pytest.mark.parametrize("restore", [lambda saved: None, lambda saved: torch.set_rng_state(saved["cpu"])])
def test_without_the_devices_part_they_would_not(gpu, restore):
    first, second = losses_after_a_restore(restore)
    assert first != second


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    config = toy_config("toy-bert-2L-16H")
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.2
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return [f"teacher.pretrained={folder}", "device=cuda", "method=kd", "train.epochs=2", "checkpoint.every_steps=1"]


class StopError(Exception):
    """What ends a run in the middle."""


def losses_of(folder):
    records = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    return [record["train"]["loss"] for record in records if record["event"] == "epoch"]


def stopped_and_taken_up(path, settings):
    """The losses of a run that is stopped in its seventh step, the second of the second epoch, and taken up again."""
    count, step = itertools.count(1), KnowledgeDistiller.step

    def step_or_stop(method, batch):
        if next(count) == 7:
            raise StopError
        return step(method, batch)

    stopped = Experiment.from_yaml(TINY, f"runs_dir={path}", *settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KnowledgeDistiller, "step", step_or_stop)
        with pytest.raises(StopError):
            stopped.fit()
    again = Experiment.from_yaml(TINY, f"runs_dir={path}", *settings)
    again.fit()
    return losses_of(again.folder)


@pytest.mark.slow
def test_a_run_with_dropout_that_is_taken_up_again_ends_as_one_that_never_stopped(gpu, tmp_path, settings, monkeypatch):
    whole = Experiment.from_yaml(TINY, f"runs_dir={tmp_path}/whole", *settings)
    whole.fit()
    assert stopped_and_taken_up(tmp_path / "part", settings) == losses_of(whole.folder)
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device="cuda": None
    )  # a mutant, which must be noticed
    assert stopped_and_taken_up(tmp_path / "broken", settings) != losses_of(whole.folder)
