"""What Teacher and Student promise."""

from types import SimpleNamespace

import pytest
import torch
import transformers

from reptile_distil.errors import ModelError
from reptile_distil.models.classifier import Classifier, Student, Teacher, count_parameters
from tests.helpers.models import batch, bert, classifier
from tests.helpers.saved_models import WITH_MPNET


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


class PassesOn(torch.nn.Module):
    """A wrapper that names the token ids, and passes what else it is given on to its model."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids, **inputs):
        return self.model(input_ids, **inputs)


class PassesAllOn(PassesOn):
    def forward(self, **inputs):
        return self.model(**inputs)


@pytest.mark.parametrize("wrapper", [PassesOn, PassesAllOn])
def test_a_wrapper_with_keyword_arguments_gets_mask_and_segments_and_nothing_else(wrapper):
    model = bert(2).eval()
    given = {**batch(), "token_type_ids": batch()["input_ids"] % 2, "idx": torch.arange(8)}
    given["attention_mask"] = given["attention_mask"].clone()
    given["attention_mask"][:, -2:] = 0
    of_model = Classifier(model)(given)
    assert torch.equal(Classifier(wrapper(model))(given), of_model)
    for column in ("attention_mask", "token_type_ids"):
        assert not torch.equal(Classifier(model)({**given, column: 1 - given[column]}), of_model)


def test_a_wrapper_that_passes_on_what_its_model_does_not_take_fails_loudly():
    class Maskless(PassesOn):
        def forward(self, input_ids, **inputs):
            return read(input_ids, **inputs)

    def read(input_ids):
        return SimpleNamespace(logits=input_ids.float())

    with pytest.raises(TypeError, match="unexpected keyword argument"):
        Classifier(Maskless(bert(1)))(batch())


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
@pytest.mark.parametrize("wrapper", [Teacher, Student])
def test_a_wrapper_that_hides_what_its_model_takes_is_refused_and_the_remedy_works(wrapper, wrap):
    model = bert(1)
    with pytest.raises(ModelError, match=r"names no input_ids: give the model itself, .*\(model\.compile\(\) "):
        wrapper.wrap(wrap(model))
    model.compile()
    assert "input_ids" in wrapper.wrap(model)._inputs


@pytest.mark.parametrize("kind", [tuple, dict, torch.Tensor])
def test_a_model_that_answers_with_something_else_than_logits_by_name_is_refused(kind):
    class Answers(torch.nn.Module):
        def forward(self, input_ids):
            logits = input_ids.float()
            return {tuple: (logits,), dict: {"logits": logits}, torch.Tensor: logits}[kind]

    with pytest.raises(
        ModelError, match=rf"^Answers\.forward\(\) returns a {kind.__name__} without logits: expected an"
    ):
        Classifier(Answers())(batch())


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


@pytest.mark.parametrize(("depth", "published"), [(12, 109_483_778), (6, 66_956_546)])
def test_parameters_are_counted_as_published(depth, published):
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=depth))
    assert count_parameters(model) == published


def test_shared_weights_are_counted_once():
    layer = torch.nn.Linear(3, 2)
    assert count_parameters(torch.nn.ModuleList([layer, layer])) == 8
