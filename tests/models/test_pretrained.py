"""Models with a new head, fine-tuned ones, and students made from a teacher."""

import json
from types import SimpleNamespace

import pytest
import torch
import transformers

from reptile_distil.errors import LayerMapError, ModelError
from reptile_distil.models import pretrained as models
from reptile_distil.models.pretrained import (
    load_finetuned,
    load_pretrained,
    start_from_teacher_layers,
    start_random,
)
from tests.helpers.models import bert, changed, classifier, weights
from tests.helpers.saved_models import (
    KINDS,
    MNLI,
    OUTPUT_LAYER,
    RTE,
    STSB,
    WITH_MPNET,
    edit_config,
    head,
    logits_of,
    same,
    save,
)

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


def test_no_layers_make_no_student():
    with pytest.raises(ModelError, match=r"^a student needs at least one of the teacher's layers$"):
        start_from_teacher_layers(bert(2), [])


@KINDS
def test_a_fine_tuned_model_whose_outputs_cannot_be_found_is_not_permuted(tmp_path, monkeypatch, kind):
    folder = save(classifier(kind), tmp_path, ["contradiction", "entailment", "neutral"])
    monkeypatch.setattr(models, "nn", SimpleNamespace(Linear=torch.nn.Conv1d))
    with pytest.raises(
        ModelError,
        match=r"ForSequenceClassification: no linear layer with 3 outputs found at its end, so its labels cannot be "
        r"put in order; choose another model$",
    ):
        load_finetuned(folder, MNLI)
