"""A whole run of Reptile between models of one tokenizer and unequally many embeddings, and its resumption."""

import pytest
import torch
import transformers

from reptile_distil.data.toy import VOCABULARY
from reptile_distil.errors import CallbackError
from reptile_distil.experiments.experiment import Experiment
from tests.helpers.experiments import epochs_of, weights_of
from tests.helpers.pairs import save_words
from tests.helpers.paths import TINY


class Fails:
    def on_step_end(self, run, step, logs, rates):
        if run.method == "reptile" and step == 3:
            raise ValueError("stop")


@pytest.mark.parametrize("options", [(), ("reptile.order=student_first",), ("reptile.update=interpolate",)])
def test_a_stopped_run_ends_as_one_that_was_not_and_the_teachers_other_rows_stay(tmp_path, options):
    size = len(VOCABULARY)
    teacher = save_words(tmp_path / "teacher", vocab_size=size + 7)
    student = save_words(tmp_path / "student", 1, vocab_size=size)

    def experiment(name, callbacks=()):
        return Experiment.from_yaml(
            TINY,
            *(f"runs_dir={tmp_path}/runs", f"output_dir={tmp_path}/{name}", "method=reptile", *options),
            *(f"teacher.pretrained={teacher}", f"student.pretrained={student}"),
            *("student.init=pretrained", "student.num_layers=null"),
            callbacks=callbacks,
        )

    whole = experiment("whole")
    whole.fit()
    with pytest.raises(CallbackError):
        experiment("stopped", [Fails()]).fit()
    again = experiment("stopped")
    again.fit()
    expected, found = weights_of(whole), weights_of(again)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    records = [epochs_of(run.folder)[-1] for run in (again, whole)]
    assert records[0]["last_gap"] == records[1]["last_gap"] > 0
    assert records[0]["teacher_drift"] == records[1]["teacher_drift"] > 0
    saved = transformers.AutoConfig.from_pretrained(again.folder.model)
    assert saved.vocab_size == size
