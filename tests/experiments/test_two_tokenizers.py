"""kd between models whose tokenizers differ: each reads its own tokens of the same rows."""

import numpy as np
import pytest
import torch
import transformers

from reptile_distil.data import toy
from reptile_distil.errors import CallbackError, DataError, ModelError, RunError
from reptile_distil.experiments.build_task import build_task
from reptile_distil.experiments.dry_run import plan_distillation
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.experiments.setup import build_batches, build_training_batches
from reptile_distil.losses.distillation import tempered_kl
from reptile_distil.models.tokenizer import Tokenizers, load_tokenizer
from tests.helpers.experiments import weights_of
from tests.helpers.pairs import letters, letters_of, save_letters, save_words, words_of
from tests.helpers.paths import TINY


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A teacher that reads words, and a student that reads letters."""
    folder = tmp_path_factory.mktemp("pair")
    return [
        f"teacher.pretrained={save_words(folder / 'teacher')}",
        f"student.pretrained={save_letters(folder / 'student')}",
        *("student.init=pretrained", "student.num_layers=null", "method=kd", "data.max_length=64"),
    ]


@pytest.fixture
def experiment(pair, tmp_path):
    def make(*overrides, callbacks=()):
        runs = f"runs_dir={tmp_path}/runs"
        return Experiment.from_yaml(TINY, runs, *pair, *overrides, callbacks=callbacks)

    return make


def tokenizers_of(config):
    return Tokenizers(load_tokenizer(config.student.pretrained), load_tokenizer(config.teacher.pretrained))


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("options", [[], ["data.validation_fraction=0.2"], ["data.cache_dir=false"]])
def test_a_batch_carries_each_row_as_both_tokenizers_cut_it(experiment, split, options):
    config = experiment(*options).config
    task = build_task(config)
    batches = build_batches(config, task, split, tokenizers_of(config), config.train, for_training=split == "train")
    texts = toy.load_split(task, split)["text"]
    row_ids = batches.row_ids(1, 0)
    batch = next(iter(batches.epoch(1)))
    assert {"input_ids", "attention_mask", "labels", "teacher_input_ids", "teacher_attention_mask"} <= set(batch)
    assert "teacher_labels" not in batch
    for row, number in enumerate(row_ids):
        words = batch["teacher_input_ids"][row][batch["teacher_attention_mask"][row].bool()].tolist()
        assert words == words_of(texts[number])
        assert batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist() == letters_of(texts[number])


def test_rows_of_a_file_without_labels_carry_what_both_tokenizers_make_of_them(experiment, tmp_path):
    texts = [f"{word} film" for word in ("good", "bad", "dull")]
    (tmp_path / "more.tsv").write_text("\n".join(["sentence", *texts]) + "\n")
    config = experiment(f"data.transfer.files=[{tmp_path / 'more.tsv'}]").config
    train = build_training_batches(config, build_task(config), tokenizers_of(config))
    batch = train.batch(np.flatnonzero(~train.features.is_labelled))
    for row, text in enumerate(texts):
        for prefix, expected in (("", letters_of(text)), ("teacher_", words_of(text))):
            ids = batch[f"{prefix}input_ids"][row][batch[f"{prefix}attention_mask"][row].bool()]
            assert ids.tolist() == expected
    assert batch["labels"].tolist() == [-1, -1, -1]


def test_the_student_learns_from_what_the_teacher_says_of_its_own_tokens(experiment):
    setup = experiment().setup
    components = setup.prepare_student(setup.config.teacher.pretrained, stand_in=True)
    student, built = setup.assemble("kd", components)
    batch = next(iter(components.data["train"].epoch(1)))
    teacher = components.teacher.model
    with torch.no_grad():
        soft = teacher(
            input_ids=batch["teacher_input_ids"],
            attention_mask=batch["teacher_attention_mask"],
            token_type_ids=batch["teacher_token_type_ids"],
        ).logits
        own = student.eval()({name: batch[name] for name in ("input_ids", "attention_mask")})
    expected = tempered_kl(own, soft, setup.config.loss.temperature)
    student.model.config.hidden_dropout_prob = 0.0
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(built.method.step(batch)["distillation_loss"], expected)


@pytest.mark.parametrize(
    "options",
    [
        ["task=toy-pair", "train.micro_batch_size=5"],
        ["data.packing=true"],
        ["method=metadistil"],
        pytest.param(["task=toy-sentence"], marks=pytest.mark.slow),
        pytest.param(["task=toy-regression"], marks=pytest.mark.slow),
        pytest.param(["data.validation_fraction=0.2"], marks=pytest.mark.slow),
        pytest.param(["method=finetune"], marks=pytest.mark.slow),
    ],
    ids=lambda options: options[0],
)
def test_it_trains_scores_the_teacher_and_leaves_a_student_with_its_own_tokenizer(experiment, options):
    trained = experiment(*options, "train.max_steps=3", "teacher.train.max_steps=3")
    results = trained.fit()
    folder = trained.folder.model
    assert transformers.AutoTokenizer.from_pretrained(folder).get_vocab() == letters().get_vocab()
    assert trained.evaluate()["dev"] == results["scores"]["dev"]
    texts = [("a good film", "the film")] if trained.task.is_pair else ["a good film", "the plot was bad"]
    assert len(trained.predict(texts)) == len(texts)
    if "teacher" in results:
        alone = trained.evaluate(model=trained.teacher_folder.model)
        assert results["teacher"]["scores_at_start"]["dev"] == pytest.approx(alone["dev"], abs=1e-5)
        assert set(results["latency"]["batches"]) == {"1", "32"}


def test_a_run_that_was_stopped_ends_as_one_that_was_not(experiment, tmp_path):
    class Fails:
        def on_step_end(self, run, step, logs, rates):
            if run.method == "kd" and step == 3:
                raise ValueError("stop")

    whole = experiment(f"output_dir={tmp_path}/whole")
    whole.fit()
    with pytest.raises(CallbackError):
        experiment(f"output_dir={tmp_path}/stopped", callbacks=[Fails()]).fit()
    again = experiment(f"output_dir={tmp_path}/stopped")
    again.fit()
    expected, found = weights_of(whole), weights_of(again)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_tokenizer_of_the_teacher_keeps_a_stopped_run_from_going_on(pair, tmp_path):
    class Fails:
        def on_step_end(self, run, step, logs, rates):
            raise ValueError("stop")

    teacher = save_words(tmp_path / "own-teacher")
    given = [f"teacher.finetuned={teacher}", "teacher.label_names=[negative, positive]"]
    options = (TINY, f"runs_dir={tmp_path}/runs", *pair[1:], *given)
    with pytest.raises(CallbackError):
        Experiment.from_yaml(*options, callbacks=[Fails()]).fit()
    file = tmp_path / "own-teacher" / "tokenizer.json"
    file.write_text(file.read_text().replace('"good"', '"goood"'))
    with pytest.raises(RunError, match=r"the (train|dev) split has changed since this run began"):
        Experiment.from_yaml(*options).fit()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["method=reptile"], "Reptile moves each of the teacher's embeddings towards the student's of the same token"),
        (["loss.hidden=1.0"], r"loss\.hidden compares what both models make of the same tokens"),
        (["loss.patient=1.0"], r"loss\.patient compares what both models make of the same tokens"),
        (["method=metadistil", "loss.hidden=1.0"], r"loss\.hidden compares what both models make of the same tokens"),
    ],
)
def test_what_needs_the_same_tokens_is_refused_before_anything_is_trained(experiment, options, reason):
    refused = experiment(*options)
    message = rf"^teacher .*teacher and student .*student have different vocabularies: {reason}; choose a pair"
    with pytest.raises(ModelError, match=message):
        refused.fit()
    assert not refused.teacher_folder.path.exists()


def test_a_dry_run_measures_both(experiment):
    plan = plan_distillation(experiment().config)
    (kd,) = [run for run in plan.runs if run.role == "kd"]
    assert kd.measured.vocabulary == len(letters())
    assert kd.seconds > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_models_rows_are_padded_as_its_own_tokenizer_says(experiment, side):
    config = experiment().config
    words = load_tokenizer(config.teacher.pretrained)
    words.padding_side = side
    pair = Tokenizers(letters(), words)
    batch = next(iter(build_training_batches(config, build_task(config), pair).epoch(1)))
    mask = batch["teacher_attention_mask"]
    shorter = mask.sum(1) < mask.shape[1]
    assert shorter.any()
    assert (mask[shorter][:, 0 if side == "left" else -1] == 0).all()
    assert (batch["attention_mask"][:, 0] == 1).all()


def test_rows_of_another_split_do_not_go_beside_each_other(experiment):
    config = experiment().config
    features = build_batches(config, build_task(config), "dev", letters(), config.train).features
    with pytest.raises(DataError, match="rows of the teacher do not belong"):
        features.beside(features.select(np.arange(3)))
