"""What Teacher and Student promise, and what loading a model checks."""

import functools
import json
import time
from types import SimpleNamespace

import pytest
import torch
import transformers

from reptile_distil.data.tasks import get_task
from reptile_distil.errors import LayerMapError, ModelError
from reptile_distil.models import loading
from reptile_distil.models import pretrained as models
from reptile_distil.models.classifier import Classifier, Student, Teacher, count_parameters
from reptile_distil.models.pretrained import (
    load_finetuned,
    load_pretrained,
    start_from_teacher_layers,
    start_random,
)
from reptile_distil.models.tokenizer import check_same_tokenizer, load_tokenizer
from reptile_distil.models.toy import toy_tokenizer
from tests.helpers.models import batch, bert, changed, classifier, weights

KINDS = pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
WITH_MPNET = pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "mpnet"])
OUTPUT_LAYER = {
    "bert": "classifier",
    "roberta": "classifier.out_proj",
    "distilbert": "classifier",
    "electra": "classifier.out_proj",
}
MNLI, RTE, STSB = get_task("mnli"), get_task("rte"), get_task("stsb")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def save(model, folder, labels=None):
    """The folder's name, with the model in it."""
    if labels is not None:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
    model.save_pretrained(folder)
    return str(folder)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def head(model):
    """The weights outside the encoder, by name."""
    prefix = model.base_model_prefix + "."
    return {name: weight for name, weight in weights(model).items() if not name.startswith(prefix)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logits_of(model):
    with torch.no_grad():
        return Classifier(model).eval()(batch())


# Teacher and student


def test_a_teacher_is_in_eval_mode_from_the_start_and_stays_there():
    teacher = Teacher(bert(2, dropout=0.5))
    assert not any(module.training for module in teacher.modules())
    teacher.train()
    assert not any(module.training for module in teacher.modules())


def test_a_teacher_stays_in_eval_mode_inside_a_module_that_is_trained():
    pair = torch.nn.ModuleDict({"teacher": Teacher(bert(2, dropout=0.5)), "student": Student(bert(2))}).train()
    assert not any(module.training for module in pair["teacher"].modules())
    assert pair["student"].model.training


def test_soft_labels_have_no_dropout_even_after_train_on_the_inner_model():
    model = bert(2, dropout=0.5)
    teacher = Teacher(model)
    expected = teacher.soft_labels(batch())
    model.train()
    assert torch.equal(teacher.soft_labels(batch()), expected)
    assert not model.training


def test_soft_labels_have_no_graph():
    teacher = Teacher(bert(2))
    assert not teacher.soft_labels(batch()).requires_grad


def test_soft_labels_come_from_the_weights_as_they_are_now():
    teacher = Teacher(bert(2))
    before = teacher.soft_labels(batch())
    with torch.no_grad():
        teacher.model.classifier.bias += torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(teacher.soft_labels(batch()), before + torch.tensor([1.0, 2.0, 3.0]))


def test_a_teacher_is_trainable_all_the_same():
    teacher = Teacher(bert(2))
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    teacher(batch()).sum().backward()
    assert teacher.model.classifier.weight.grad is not None


def test_a_student_trains_and_evaluates_as_it_is_told():
    student = Student(bert(2))
    assert not any(module.training for module in student.eval().modules())
    assert all(module.training for module in student.train().modules())


@pytest.mark.parametrize("wrapper", [Student, Teacher])
def test_a_wrapped_model_is_not_wrapped_again(wrapper):
    model = bert(2)
    wrapped = wrapper.wrap(model)
    assert wrapped.model is model
    assert wrapper.wrap(wrapped) is wrapped


def test_a_student_may_become_a_teacher():
    student = Student(bert(2), autocast_dtype=torch.bfloat16)
    teacher = Teacher.wrap(student)
    assert teacher.model is student.model
    assert teacher.soft_labels(batch()).dtype == torch.bfloat16


@WITH_MPNET
def test_the_logits_are_those_of_the_model(kind):
    model = classifier(kind).eval()
    inputs = {"input_ids": batch()["input_ids"] % 28 + 2, "attention_mask": batch()["attention_mask"]}
    assert torch.equal(Classifier(model)({**inputs, "labels": batch()["labels"]}), model(**inputs).logits)


@WITH_MPNET
def test_inputs_that_the_model_does_not_take_are_left_out(kind):
    model = Classifier(classifier(kind)).eval()
    inputs = {"input_ids": batch()["input_ids"] % 28 + 2, "attention_mask": batch()["attention_mask"]}
    with_segments = model({**inputs, "token_type_ids": torch.ones_like(inputs["input_ids"]), "idx": torch.arange(8)})
    assert torch.equal(model(inputs), with_segments) == (kind in ("distilbert", "mpnet"))


def test_a_model_is_never_called_with_an_input_it_has_no_name_for():
    class Strict(torch.nn.Module):
        def forward(self, input_ids, labels=None):
            assert labels is None
            return SimpleNamespace(logits=input_ids.float())

    inputs = {"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3), "token_type_ids": torch.ones(2, 3)}
    assert Classifier(Strict())({**inputs, "labels": torch.zeros(2)}).shape == (2, 3)


def test_labels_are_left_out_too_so_that_the_model_computes_no_loss_of_its_own():
    model = bert(2)
    assert Classifier(model)({**batch(), "labels": torch.full((8,), 99)}).shape == (8, 3)


def test_autocast_gives_logits_in_its_dtype_and_without_it_in_the_weights_own():
    assert Student(bert(2), autocast_dtype=torch.bfloat16)(batch()).dtype == torch.bfloat16
    assert Student(bert(2))(batch()).dtype == torch.float32
    assert Student(bert(2, dtype=torch.float64))(batch()).dtype == torch.float64


@pytest.mark.parametrize("wrapper", [Student, Teacher])
def test_autocast_ends_with_the_forward_pass_so_the_next_one_sees_moved_weights(wrapper):
    model = wrapper(bert(2, seed=1), autocast_dtype=torch.bfloat16)
    model(batch())
    assert not torch.is_autocast_enabled("cpu")
    with torch.no_grad():
        for weight, other in zip(model.model.parameters(), bert(2, seed=2).parameters(), strict=True):
            weight.copy_(other)
    expected = wrapper(bert(2, seed=2), autocast_dtype=torch.bfloat16)(batch())
    assert torch.equal(model(batch()), expected)


def test_autocast_keeps_weights_and_gradients_in_float32():
    student = Student(bert(2), autocast_dtype=torch.bfloat16)
    student(batch()).float().sum().backward()
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    assert {weight.grad.dtype for weight in student.parameters() if weight.grad is not None} == {torch.float32}


# A pretrained model with a new head


@KINDS
def test_the_encoder_is_loaded_and_gets_a_new_head_of_the_tasks_width(tmp_path, kind):
    saved = classifier(kind, num_labels=2)
    model = load_pretrained(save(saved, tmp_path), MNLI, seed=0)
    assert logits_of(model).shape == (8, 3)
    for name, weight in weights(saved.base_model).items():
        assert torch.equal(model.base_model.get_parameter(name), weight), name


@KINDS
def test_a_head_of_the_right_shape_is_dropped_all_the_same(tmp_path, kind):
    saved = classifier(kind, seed=1)
    model = load_pretrained(save(saved, tmp_path), MNLI, seed=0)
    for name, weight in head(model).items():
        if name.endswith(".weight"):
            assert not torch.equal(weight, saved.get_parameter(name)), name


@KINDS
def test_the_head_depends_on_the_seed_alone(tmp_path, kind):
    folder = save(classifier(kind), tmp_path)
    torch.manual_seed(1)
    first = head(load_pretrained(folder, MNLI, seed=7))
    torch.manual_seed(2)
    assert same(first, head(load_pretrained(folder, MNLI, seed=7)))
    other = head(load_pretrained(folder, MNLI, seed=8))
    assert not torch.equal(first[OUTPUT_LAYER[kind] + ".weight"], other[OUTPUT_LAYER[kind] + ".weight"])


def test_the_head_is_the_same_whether_or_not_the_checkpoint_had_one(tmp_path):
    saved = bert(2)
    with_head = load_pretrained(save(saved, tmp_path / "classifier"), MNLI, seed=7)
    without = load_pretrained(save(saved.base_model, tmp_path / "encoder"), MNLI, seed=7)
    assert same(weights(with_head), weights(without))


@pytest.mark.parametrize("name", ["toy-bert-2L-16H", None])
def test_loading_leaves_the_global_random_numbers_alone(tmp_path, name):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_pretrained(name or folder, MNLI, seed=0)
    load_finetuned(folder, MNLI)
    assert torch.equal(torch.rand(3), expected)


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_checkpoint_is_loaded_in_float32_head_included(tmp_path, kind, dtype):
    saved = classifier(kind).to(dtype)
    model = load_pretrained(save(saved, tmp_path), MNLI, seed=0)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, weight in weights(saved.base_model).items():
        assert torch.equal(model.base_model.get_parameter(name), weight.float()), name


def test_the_head_of_a_half_precision_checkpoint_is_not_rounded_to_half(tmp_path):
    of_half = load_pretrained(save(bert(2, dtype=torch.float16), tmp_path / "half"), MNLI, seed=7)
    of_float = load_pretrained(save(bert(2), tmp_path / "float"), MNLI, seed=7)
    assert same(head(of_half), head(of_float))


def test_students_made_from_a_half_precision_teacher_are_float32(tmp_path):
    folder = save(bert(4, dtype=torch.float16), tmp_path, MNLI.label_names)
    teacher = load_finetuned(folder, MNLI)
    for model in (teacher, start_from_teacher_layers(teacher, [1, 3]), start_random(teacher, 2, seed=0)):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("task", "names", "problem"),
    [
        (MNLI, {0: "entailment", 1: "neutral", 2: "contradiction"}, "single_label_classification"),
        (RTE, {0: "entailment", 1: "not_entailment"}, "single_label_classification"),
        (STSB, {0: "score"}, "regression"),
    ],
)
@pytest.mark.parametrize("name", ["toy-bert-2L-16H", None])
def test_the_config_says_what_the_outputs_mean(tmp_path, name, task, names, problem):
    config = load_pretrained(name or save(bert(2), tmp_path), task, seed=0).config
    assert config.id2label == names
    assert config.label2id == {label: index for index, label in names.items()}
    assert config.problem_type == problem
    assert config.num_labels == len(names)


@pytest.mark.parametrize(
    ("lie", "name"),
    [
        ({"num_hidden_layers": 3}, "'bert.encoder.layer.2.attention.output.LayerNorm.bias'"),
        ({"vocab_size": 40}, "'bert.embeddings.word_embeddings.weight'"),
    ],
)
def test_a_checkpoint_without_some_of_the_encoders_weights_is_refused(tmp_path, lie, name):
    folder = save(bert(2), tmp_path)
    edit_config(tmp_path, **lie)
    with pytest.raises(ModelError, match=rf"^{folder}: \d+ weights of the encoder .*, {name} among them"):
        load_pretrained(folder, MNLI, seed=0)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    folder = save(classifier("roberta"), tmp_path)
    edit_config(tmp_path, model_type="bert")
    with pytest.raises(ModelError, match=r"weights of the encoder .* it is no checkpoint of a BertForSequence"):
        load_pretrained(folder, MNLI, seed=0)


def test_a_missing_pooler_is_drawn_from_the_seed(tmp_path):
    folder = save(transformers.BertForMaskedLM(bert(2).config), tmp_path)
    torch.manual_seed(1)
    first = load_pretrained(folder, MNLI, seed=7)
    torch.manual_seed(2)
    assert same(weights(first), weights(load_pretrained(folder, MNLI, seed=7)))
    other = load_pretrained(folder, MNLI, seed=8)
    assert not torch.equal(first.bert.pooler.dense.weight, other.bert.pooler.dense.weight)


def test_a_toy_model_is_drawn_from_the_seed():
    torch.manual_seed(1)
    first = load_pretrained("toy-bert-2L-16H", MNLI, seed=7)
    torch.manual_seed(2)
    assert same(weights(first), weights(load_pretrained("toy-bert-2L-16H", MNLI, seed=7)))
    assert changed(weights(first), load_pretrained("toy-bert-2L-16H", MNLI, seed=8)) >= {"classifier.weight"}


# A fine-tuned model


@KINDS
def test_a_models_outputs_in_another_order_are_permuted_by_name(tmp_path, kind):
    saved = classifier(kind)
    folder = save(saved, tmp_path, ["contradiction", "entailment", "neutral"])
    model = load_finetuned(folder, MNLI)
    assert torch.equal(logits_of(model), logits_of(saved)[:, [1, 2, 0]])
    assert model.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert model.config.label2id == {"entailment": 0, "neutral": 1, "contradiction": 2}


@KINDS
def test_a_models_outputs_in_the_tasks_order_stay_as_they_are(tmp_path, kind):
    saved = classifier(kind)
    model = load_finetuned(save(saved, tmp_path, MNLI.label_names), MNLI)
    assert torch.equal(logits_of(model), logits_of(saved))


def test_label_names_that_differ_in_capitals_blanks_and_hyphens_are_the_same(tmp_path):
    saved = bert(2, num_labels=2)
    model = load_finetuned(save(saved, tmp_path, ["Not-Entailment ", "ENTAILMENT"]), RTE)
    assert torch.equal(logits_of(model), logits_of(saved)[:, [1, 0]])
    assert model.config.id2label == {0: "entailment", 1: "not_entailment"}


def test_labels_without_names_are_refused_with_the_remedy(tmp_path):
    folder = save(bert(2), tmp_path, ["LABEL_0", "LABEL_1", "LABEL_2"])
    message = (
        f"^{folder}: its labels are LABEL_0, LABEL_1, LABEL_2, but task mnli has entailment, neutral, contradiction; "
        r"if they mean the same, say in which order: teacher\.label_names=\[\.\.\.\]$"
    )
    with pytest.raises(ModelError, match=message):
        load_finetuned(folder, MNLI)


def test_label_numbers_that_do_not_start_at_0_are_refused(tmp_path):
    folder = save(bert(2), tmp_path)
    edit_config(tmp_path, id2label={"1": "entailment", "2": "neutral", "3": "contradiction"})
    with pytest.raises(ModelError, match=f"^{folder}: its labels are LABEL_0, entailment, neutral, but task mnli has"):
        load_finetuned(folder, MNLI)


def test_the_remedy_for_labels_without_names_works(tmp_path):
    saved = bert(2)
    folder = save(saved, tmp_path, ["LABEL_0", "LABEL_1", "LABEL_2"])
    model = load_finetuned(folder, MNLI, ["contradiction", "entailment", "neutral"])
    assert torch.equal(logits_of(model), logits_of(saved)[:, [1, 2, 0]])
    assert model.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}


def test_the_remedy_for_labels_without_names_works_for_other_names_too(tmp_path):
    saved = bert(2)
    folder = save(saved, tmp_path, ["con", "ent", "neu"])
    model = load_finetuned(folder, MNLI, ["contradiction", "entailment", "neutral"])
    assert torch.equal(logits_of(model), logits_of(saved)[:, [1, 2, 0]])


@pytest.mark.parametrize(
    "names", [["entailment", "neutral"], ["entailment", "neutral", "neutral"], ["entailment", "neutral", "else"]]
)
def test_given_names_that_are_not_the_tasks_are_refused(tmp_path, names):
    folder = save(bert(2), tmp_path, ["LABEL_0", "LABEL_1", "LABEL_2"])
    with pytest.raises(ModelError, match=f"its labels are {', '.join(names)}, but task mnli has"):
        load_finetuned(folder, MNLI, names)


def test_a_permuted_teacher_still_learns_through_its_output_layer(tmp_path):
    model = load_finetuned(save(bert(2), tmp_path, ["neutral", "contradiction", "entailment"]), MNLI)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


@pytest.mark.parametrize("task", [RTE, STSB])
def test_another_number_of_outputs_is_refused(tmp_path, task):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    with pytest.raises(ModelError, match=f"^{folder}: has 3 outputs, but task {task.name} needs {task.num_labels}$"):
        load_finetuned(folder, task)


def test_a_regression_teacher_needs_no_label_names(tmp_path):
    saved = bert(2, num_labels=1)
    model = load_finetuned(save(saved, tmp_path, ["LABEL_0"]), STSB)
    assert torch.equal(logits_of(model), logits_of(saved))


@KINDS
def test_an_encoder_without_a_head_is_no_fine_tuned_model(tmp_path, kind):
    saved = classifier(kind)
    saved.base_model.config.id2label = dict(enumerate(MNLI.label_names))
    folder = save(saved.base_model, tmp_path)
    with pytest.raises(ModelError, match=rf"^{folder}: no fine-tuned classifier: \d+ weights .*'classifier\."):
        load_finetuned(folder, MNLI)


@KINDS
def test_what_load_pretrained_made_is_taken_back_by_load_finetuned(tmp_path, kind):
    made = load_pretrained(save(classifier(kind), tmp_path / "before"), MNLI, seed=0)
    assert same(weights(made), weights(load_finetuned(save(made, tmp_path / "after"), MNLI)))


# Where models are looked for


def test_a_missing_folder_is_one_sentence(tmp_path):
    for load in (
        lambda name: load_pretrained(name, MNLI, seed=0),
        lambda name: load_finetuned(name, MNLI),
        load_tokenizer,
    ):
        with pytest.raises(ModelError, match=rf"^{tmp_path}/nowhere: no such folder[^\n]*$"):
            load(f"{tmp_path}/nowhere")


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    for load in (
        lambda name: load_pretrained(name, MNLI, seed=0),
        lambda name: load_finetuned(name, MNLI),
        load_tokenizer,
    ):
        with pytest.raises(
            ModelError, match=rf"^{tmp_path}: no model or tokenizer can be loaded from this folder: [^\n]*$"
        ):
            load(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "{}"])
def test_a_broken_config_is_one_sentence(tmp_path, text):
    folder = save(bert(2), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=rf"^{folder}: no model or tokenizer can be loaded from this folder: [^\n]*$"):
        load_pretrained(folder, MNLI, seed=0)


@pytest.mark.parametrize(
    "load", [lambda name: load_pretrained(name, MNLI, seed=0), lambda name: load_finetuned(name, MNLI)]
)
def test_weights_that_were_cut_off_in_a_download_are_one_sentence(tmp_path, load):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match=rf"^{folder}: [^\n]*$"):
        load(folder)


def test_a_fine_tuned_head_of_another_shape_than_the_config_says_is_one_sentence(tmp_path):
    folder = save(bert(2, num_labels=2), tmp_path)
    edit_config(tmp_path, id2label=dict(enumerate(MNLI.label_names)))
    with pytest.raises(ModelError, match=rf"^{folder}: [^\n]*$"):
        load_finetuned(folder, MNLI)


def test_a_model_folder_without_a_tokenizer_is_refused(tmp_path):
    folder = save(bert(2), tmp_path)
    with pytest.raises(ModelError, match=f"^{folder}: "):
        load_tokenizer(folder)


def test_a_hub_name_without_a_network_fails_at_once_and_says_what_to_do():
    for load in (
        lambda name: load_pretrained(name, MNLI, seed=0),
        lambda name: load_finetuned(name, MNLI),
        load_tokenizer,
    ):
        start = time.monotonic()
        with pytest.raises(ModelError, match=r"^somebody/no-such-model: [^\n]*folder[^\n]*$"):
            load("somebody/no-such-model")
        assert time.monotonic() - start < 2


def test_a_folder_is_loaded_without_asking_the_network(tmp_path, monkeypatch):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    toy_tokenizer().save_pretrained(folder)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []
    monkeypatch.setattr("socket.socket.connect", lambda *address: asked.append(address))
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: asked.append(address) or [])
    load_pretrained(folder, MNLI, seed=0)
    load_finetuned(folder, MNLI)
    load_tokenizer(folder)
    assert asked == []


def test_loading_prints_nothing_and_leaves_transformers_as_talkative_as_it_was(tmp_path, capfd):
    folder = save(bert(2, num_labels=2), tmp_path)
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    load_pretrained(folder, MNLI, seed=0)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# Students made from a teacher


@WITH_MPNET
@pytest.mark.parametrize("layers", [[1, 3], [3, 0], [2]])
def test_a_student_made_from_teacher_layers_is_a_copy_of_exactly_these(kind, layers):
    teacher = classifier(kind, 4)
    student = start_from_teacher_layers(teacher, layers)
    of_teacher = weights(teacher)
    assert student.config.num_hidden_layers == len(layers)
    for name, weight in weights(student).items():
        if ".layer." in name:
            before, after = name.split(".layer.")
            name = f"{before}.layer.{layers[int(after[0])]}{after[1:]}"
        assert torch.equal(weight, of_teacher[name]), name


def test_all_layers_give_the_teachers_logits():
    teacher = bert(4)
    assert torch.equal(logits_of(start_from_teacher_layers(teacher, [0, 1, 2, 3])), logits_of(teacher))


def test_the_copy_shares_no_memory_with_the_teacher():
    teacher = bert(4)
    before = weights(teacher)
    with torch.no_grad():
        for parameter in start_from_teacher_layers(teacher, [1, 3]).parameters():
            parameter.fill_(7.0)
    assert not changed(before, teacher)
    assert teacher.config.num_hidden_layers == 4


def test_a_student_keeps_the_teachers_label_names(tmp_path):
    teacher = load_finetuned(save(bert(4), tmp_path, ["neutral", "contradiction", "entailment"]), MNLI)
    for student in (start_from_teacher_layers(teacher, [1]), start_random(teacher, 1, seed=0)):
        assert student.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}


def test_copying_layers_leaves_the_global_random_numbers_alone():
    teacher = bert(4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    start_from_teacher_layers(teacher, [1, 3])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("layers", [[4], [-1], [1, 1]])
def test_layers_that_the_teacher_does_not_have_are_refused(layers):
    with pytest.raises(LayerMapError, match=rf"layer map \[{layers[0]}"):
        start_from_teacher_layers(bert(4), layers)


def test_a_random_student_depends_on_the_seed_alone():
    teacher = bert(4)
    torch.manual_seed(1)
    first = start_random(teacher, 2, seed=7)
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    assert same(weights(first), weights(start_random(teacher, 2, seed=7)))
    assert torch.equal(torch.rand(3), expected)
    assert changed(weights(first), start_random(teacher, 2, seed=8)) >= {"bert.embeddings.word_embeddings.weight"}


@WITH_MPNET
def test_a_random_student_has_the_asked_depth_and_none_of_the_teachers_matrices(kind):
    teacher = classifier(kind, 4)
    student = start_random(teacher, 3, seed=0)
    of_teacher = weights(teacher)
    assert student.config.num_hidden_layers == 3
    for name, weight in weights(student).items():
        assert weight.shape == of_teacher[name].shape
        assert weight.ndim == 1 or not torch.equal(weight, of_teacher[name]), name
    assert not [name for name in weights(student) if ".layer.3." in name]


# What is found before it costs anything


def test_absurd_sizes_are_refused_before_they_fill_the_memory(tmp_path):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    edit_config(tmp_path, num_labels=10**9)
    for load in (
        lambda: load_pretrained(folder, MNLI, seed=0),
        lambda: load_finetuned(folder, MNLI),
        lambda: load_tokenizer(folder),
    ):
        with pytest.raises(
            ModelError, match=f"^{folder}/config.json: num_labels = 1000000000: expected 10000 or less$"
        ):
            load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": -4}, "the model fails on its first tokens: RuntimeError"),
        ({"attention_probs_dropout_prob": 2}, "the model fails on its first tokens: ValueError|no model or tokenizer"),
    ],
)
def test_a_model_that_cannot_compute_is_refused_when_it_is_loaded(tmp_path, changes, message):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    edit_config(tmp_path, **changes)
    for load in (lambda: load_pretrained(folder, MNLI, seed=0), lambda: load_finetuned(folder, MNLI)):
        with pytest.raises(ModelError, match=f"^{folder}: ({message})"):
            load()


def test_attention_code_from_the_hub_is_refused_when_a_model_is_loaded(tmp_path):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    edit_config(tmp_path, attn_implementation="somebody/code")
    if "/" not in str(transformers.AutoConfig.from_pretrained(folder)._attn_implementation):
        pytest.skip("this version of transformers does not read it from a file")
    for load in (lambda: load_pretrained(folder, MNLI, seed=0), lambda: load_finetuned(folder, MNLI)):
        with pytest.raises(
            ModelError, match=f"^{folder}: config.json asks for the attention code 'somebody/code' from"
        ):
            load()


def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path):
    model = bert(2)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[3, 4] = float("nan")
    folder = save(model, tmp_path, MNLI.label_names)
    message = f"^{folder}: the weights 'bert.encoder.layer.1.output.dense.weight' hold infinite or undefined numbers"
    for load in (lambda: load_pretrained(folder, MNLI, seed=0), lambda: load_finetuned(folder, MNLI)):
        with pytest.raises(ModelError, match=message):
            load()


def test_a_model_with_other_outputs_than_its_config_says_is_refused(tmp_path, monkeypatch):
    folder = save(bert(2), tmp_path, MNLI.label_names)
    forward = transformers.BertForSequenceClassification.forward

    @functools.wraps(forward)
    def wider(self, *args, **options):
        return SimpleNamespace(logits=forward(self, *args, **options).logits.repeat(1, 2))

    monkeypatch.setattr(transformers.BertForSequenceClassification, "forward", wider)
    with pytest.raises(ModelError, match=rf"^{folder}: gives \(1, 6\) numbers for one text, not 3$"):
        load_finetuned(folder, MNLI)


def test_trying_a_model_out_leaves_its_mode_and_the_random_numbers_alone(tmp_path):
    folder = save(bert(2, dropout=0.5), tmp_path, MNLI.label_names)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert not load_finetuned(folder, MNLI).training
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("changes", [{"pad_token": None}, {"unk_token": "nowhere"}])
def test_a_tokenizer_that_cannot_make_a_batch_is_refused(tmp_path, changes):
    toy_tokenizer().save_pretrained(tmp_path)
    save(bert(2), tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=f"^{tmp_path}: its tokenizer cannot be used: "):
        load_tokenizer(str(tmp_path))


# Tokenizers, lengths, sizes


def tokenizer(words=("the", "don", "déjà", "deja", "STRASSE", "strasse"), **options):
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[OTHER]")
    options.setdefault("do_lower_case", True)  # the default is not the same in every transformers 5
    return transformers.BertTokenizer(vocab={word: index for index, word in enumerate((*special, *words))}, **options)


def test_tokenizers_that_agree_pass():
    check_same_tokenizer("big", tokenizer(), "small", tokenizer())


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: tokenizer(words=("the", "cat")), "vocabularies"),
        (lambda: tokenizer(words=("don", "the", "déjà", "deja", "STRASSE", "strasse")), "vocabularies"),
        (lambda: tokenizer(unk_token="[OTHER]"), "special tokens"),
        (lambda: tokenizer(do_lower_case=False), "ways to lower-case and clean text"),
        (lambda: tokenizer(strip_accents=False), "ways to lower-case and clean text"),
    ],
)
def test_tokenizers_that_give_other_ids_are_refused_with_both_names(other, difference):
    message = f"^teacher big and student small have different {difference}: choose a pair that shares one tokenizer$"
    with pytest.raises(ModelError, match=message):
        check_same_tokenizer("big", tokenizer(), "small", other())


def test_a_tokenizer_comes_from_the_models_folder_or_for_a_toy_from_the_toy_world(tmp_path):
    save(bert(2), tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).get_vocab() == toy_tokenizer().get_vocab()
    assert load_tokenizer("toy-bert-4L-64H").get_vocab() == toy_tokenizer().get_vocab()


@pytest.mark.parametrize(("depth", "published"), [(12, 109_483_778), (6, 66_956_546)])
def test_parameters_are_counted_as_published(depth, published):
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=depth))
    assert count_parameters(model) == published


def test_shared_weights_are_counted_once():
    layer = torch.nn.Linear(3, 2)
    assert count_parameters(torch.nn.ModuleList([layer, layer])) == 8


def test_no_layers_make_no_student():
    with pytest.raises(ModelError, match=r"^a student needs at least one of the teacher's layers$"):
        start_from_teacher_layers(bert(2), [])


def test_a_tokenizer_that_knows_only_its_special_tokens_is_refused(tmp_path):
    transformers.BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}).save_pretrained(
        tmp_path
    )
    with pytest.raises(
        ModelError, match=f"^{tmp_path}: has no vocabulary; put the tokenizer's files beside the model's$"
    ):
        load_tokenizer(str(tmp_path))


def test_damaged_files_in_the_cache_are_one_sentence_with_their_folder(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{")
    monkeypatch.setattr(loading, "find_model_snapshot", lambda name: tmp_path)
    with pytest.raises(ModelError, match=rf"^some/name: no model or tokenizer can be loaded from {tmp_path}: [^\n]+$"):
        load_tokenizer("some/name")


@KINDS
def test_a_fine_tuned_model_whose_outputs_cannot_be_found_is_not_permuted(tmp_path, monkeypatch, kind):
    folder = save(classifier(kind), tmp_path, ["contradiction", "entailment", "neutral"])
    monkeypatch.setattr(models, "nn", SimpleNamespace(Linear=torch.nn.Conv1d))
    with pytest.raises(
        ModelError, match=r"ForSequenceClassification: no linear layer with 3 outputs found at its end$"
    ):
        load_finetuned(folder, MNLI)
