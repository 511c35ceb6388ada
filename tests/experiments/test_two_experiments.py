"""Several experiments in one process: none notices the others, nor does the process."""

import logging
import signal
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers

from reptile_distil import Experiment
from reptile_distil.errors import CallbackError
from reptile_distil.models.toy import toy_config, toy_tokenizer
from tests.helpers.models import bert
from tests.helpers.paths import TINY

FIRST = ("seed=1", "train.lr=1e-3")
SECOND = ("seed=2", "train.lr=2e-3")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model with dropout, so that random numbers matter."""
    folder = tmp_path_factory.mktemp("start")
    config = toy_config("toy-bert-2L-16H")
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.2
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def make(start, tmp_path):
    def make(name, *overrides, callbacks=()):
        options = ("method=finetune", "train.epochs=2", "data.max_train_rows=32", "train.log_every=1")
        options += ("train.eval_batch_size=500", f"teacher.pretrained={start}", f"output_dir={tmp_path}/{name}")
        return Experiment.from_yaml(TINY, *options, *overrides, callbacks=callbacks)

    return make


def trace(experiment):
    """All that a run computed, bit for bit."""
    history = experiment.step_history
    return (experiment.folder.model / "model.safetensors").read_bytes(), history.drop(columns=["epoch"]).to_csv()


@pytest.fixture
def alone(make):
    experiments = make("first alone", *FIRST), make("second alone", *SECOND)
    for experiment in experiments:
        experiment.fit()
    return [trace(experiment) for experiment in experiments]


class Does:
    """Does something after each epoch."""

    def __init__(self, action):
        self.on_epoch_end = lambda run, record: action()


def test_interleaved_and_one_after_the_other_they_compute_what_each_computes_alone(make, alone):
    assert alone[0] != alone[1]
    second = make("second", *SECOND)
    first = make("first", *FIRST, callbacks=[Does(second.fit)])  # the second runs after the first's first epoch
    first.fit()
    assert [trace(first), trace(second)] == alone
    third, fourth = make("third", *FIRST), make("fourth", *SECOND)
    fourth.fit(), third.fit()
    assert [trace(third), trace(fourth)] == alone


def test_each_computes_with_its_own_threads_and_number_format_also_inside_the_other(make, monkeypatch):
    seen = []

    class Notes:
        def __init__(self, name):
            self.name = name

        def on_step_end(self, run, step, logs, rates):
            seen.append((self.name, torch.get_num_threads(), torch.get_float32_matmul_precision()))

    monkeypatch.setattr("reptile_distil.experiments.experiment.choose_precision", lambda wanted, device: "tf32")
    with_tf32 = make("tf32", "num_threads=2", callbacks=[Notes("tf32")])
    monkeypatch.undo()
    plain = make("fp32", "num_threads=1", callbacks=[Notes("fp32"), Does(with_tf32.fit)])
    plain.fit()
    assert seen == [("fp32", 1, "highest")] * 2 + [("tf32", 2, "high")] * 4 + [("fp32", 1, "highest")] * 2
    monkeypatch.setattr(
        "reptile_distil.experiments.experiment.predict_logits",
        lambda *_: seen.append((torch.get_num_threads(), torch.get_float32_matmul_precision())) or np.zeros((1, 2)),
    )
    for experiment in (with_tf32, plain):
        experiment.predict(["a"])
    assert seen[-2:] == [(2, "high"), (1, "highest")]


def state():
    """What a run could leave changed in its process."""
    loggers = [logging.getLogger(name) for name in (None, "reptile_distil", "transformers", "datasets")]
    return {
        "threads": torch.get_num_threads(),
        "matrix products": torch.get_float32_matmul_precision(),
        "random numbers": torch.get_rng_state().tolist(),
        "NumPy's random numbers": str(np.random.get_state()),  # noqa: NPY002
        "gradients": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "logging": [(logger.level, list(logger.handlers), logger.disabled) for logger in loggers],
        "transformers": (
            transformers.utils.logging.get_verbosity(),
            transformers.utils.logging.is_progress_bar_enabled(),
        ),
        "datasets": datasets.are_progress_bars_disabled(),
        "warnings": list(warnings.filters),
        "folder": Path.cwd(),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_leaves_the_process_as_it_was(make, fails):
    def fail():
        raise ValueError

    transformers.pipeline  # noqa: B018  # what is imported lazily is imported before the comparison
    bert(1)
    experiment = make("run", "num_threads=1", callbacks=[Does(fail)] if fails else [])
    before = state()
    if fails:
        with pytest.raises(CallbackError):
            experiment.fit()
    else:
        experiment.fit()
        experiment.evaluate()
        experiment.predict(["good"])
    after = state()
    for name, value in before.items():
        assert after[name] == value, name


def test_what_the_process_had_set_itself_is_what_it_has_afterwards(make):
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(3)
    torch.set_float32_matmul_precision("medium")
    try:
        make("run", "num_threads=1").fit()
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (3, "medium")
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
