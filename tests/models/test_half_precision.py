"""Copies of weights in half precision compute what autocast does, bit for bit, and follow what changes the weights."""

import copy

import pytest
import torch

from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.adamw import adamw
from reptile_distil.methods.finetune import FineTuner
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.metadistil import MetaDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.methods.reptile_variants import Ablation, TeacherRegularization
from reptile_distil.methods.step import GradientStep
from reptile_distil.models.classifier import Classifier, Student, Teacher
from reptile_distil.models.half_precision import HalfPrecisionWeights, mark_changed
from tests.helpers.models import batch, bert, classifier, masked_kinds

BF16 = torch.bfloat16
CASES = {
    "finetune": {},
    "kd": {},
    "kd micro": {"micro_batch_size": 3},
    "kd packed": {"packed": True},
    "reptile": {},
    "reptile interpolate": {"update": "interpolate"},
    "reptile micro": {"micro_batch_size": 3},
    "reptile twice": {"share_forward": False},
    "reptile inner steps": {"share_forward": False, "ablation": Ablation(inner_steps=2)},
    "reptile first": {"order": "student_first"},
    "reptile regularized": {"task": True},
    "metadistil": {},
}


def build(name, *, packed=False, task=False, with_copies=True, **options):
    how = {"autocast_dtype": BF16, "packed": packed}
    teacher, student = Teacher(bert(4, seed=1), **how), Student(bert(2, seed=2, dropout=0.1), **how)
    if not with_copies:
        teacher._half = student._half = None
    kind = name.split()[0]
    shared = {"student_optimizer": adamw(student, lr=1e-2), **options}
    models = {"student": student, "teacher": teacher}
    if kind == "finetune":
        return FineTuner(student, **shared), models
    shared["loss"] = DistillationLoss()
    if kind == "kd":
        return KnowledgeDistiller(teacher, student, **shared), models
    shared["teacher_optimizer"] = adamw(teacher, lr=1e-2)
    if kind == "metadistil":
        return MetaDistiller(teacher, student, **shared), models
    if shared.get("update") == "interpolate":
        shared["teacher_optimizer"] = torch.optim.SGD(teacher.parameters(), lr=0.1)
    if task:
        step = GradientStep(adamw(teacher, lr=1e-3))
        shared["regularization"] = TeacherRegularization(teacher, task_step=step, pull=0.1)
    return ReptileDistiller(teacher, student, **shared), models


def extra(name, seed):
    if name == "metadistil":
        return (batch(seed=seed + 10),)
    return ([batch(seed=seed), batch(seed=seed + 10)],) if name == "reptile inner steps" else ()


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_autocast_bit_for_bit(name):
    results = []
    for with_copies in (True, False):
        method, models = build(name, with_copies=with_copies, **CASES[name])
        torch.manual_seed(0)
        for seed in range(3):
            logs = method.step(batch(seed=seed), *extra(name, seed))
        results.append((models, logs))
    (found, logs), (expected, expected_logs) = results
    for key, value in expected_logs.items():
        assert torch.equal(logs[key], value), key
    for owner in expected:
        for (key, value), theta in zip(expected[owner].named_parameters(), found[owner].parameters(), strict=True):
            assert torch.equal(theta, value), f"{owner} {key}"


@pytest.fixture
def refreshed(monkeypatch):
    """How many weights each refresh copied."""
    counts, copy_all = [], torch._foreach_copy_

    def note(to, tensors):
        counts.append((len(to), to[0].dtype))
        return copy_all(to, tensors)

    monkeypatch.setattr(torch, "_foreach_copy_", note)
    return counts


def test_a_teacher_that_stays_is_copied_once_and_a_student_once_a_step(refreshed):
    method, _ = build("kd")
    for seed in range(3):
        method.step(batch(seed=seed))
    of_teacher, of_student = 2 * (6 * 4 + 2), 2 * (6 * 2 + 2)  # weight and bias of six layers, pooler and classifier
    assert refreshed.count((of_teacher, BF16)) == 1
    assert refreshed.count((of_student, BF16)) == 3
    assert refreshed.count((of_student, torch.float32)) == 3  # the gradients


@pytest.mark.parametrize("kind", masked_kinds())
def test_every_linear_weight_has_a_copy(kind):
    model = Classifier(classifier(kind), autocast_dtype=BF16).eval()
    model(batch())
    assert len(model._half._weights) == sum(
        len(list(module.parameters(recurse=False))) for module in model.modules() if isinstance(module, torch.nn.Linear)
    )


def logits(model):
    with torch.no_grad():
        return model(batch())


def changed_in_place(model):
    with torch.no_grad():
        model.classifier.weight.mul_(2)


def loaded(model):
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})


def replaced(model):
    model.classifier.weight = torch.nn.Parameter(2 * model.classifier.weight.detach())


def stepped(model):
    optimizer = adamw(model, lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def behind_its_back(model):
    """As a graph does it: nothing says that the weights have changed but `mark_changed`."""
    model.classifier.weight.data.mul_(2)
    mark_changed(model.parameters())


def swapped(model):
    """Its parameters stay, but lie elsewhere; PyTorch counts no change."""
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    torch.nn.utils.vector_to_parameters(2 * vector.detach(), model.parameters())


@pytest.mark.parametrize("change", [changed_in_place, loaded, replaced, stepped, behind_its_back, swapped])
def test_copies_follow_what_changes_the_weights(change):
    model = Classifier(bert(2), autocast_dtype=BF16).eval()
    before = logits(model)
    change(model.model)
    fresh = Classifier(copy.deepcopy(model.model), autocast_dtype=BF16).eval()
    fresh._half = None
    assert torch.equal(logits(model), logits(fresh))
    assert not torch.equal(logits(model), before)


def test_a_model_that_was_converted_is_computed_without_copies():
    model = Classifier(bert(2), autocast_dtype=BF16).eval()
    logits(model)
    weight = model.model.classifier.weight
    model.double()
    assert model.model.classifier.weight is weight
    plain = Classifier(model.model, autocast_dtype=BF16).eval()
    plain._half = None
    assert torch.equal(logits(model), logits(plain))


@pytest.fixture
def keeps_parameters():
    """`Module.to` leaves the same parameters, also from the CPU to `meta`, as it does to a GPU."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


def test_copies_go_where_the_model_is_moved(keeps_parameters):
    model = bert(1)
    weights = HalfPrecisionWeights(model, BF16)
    with weights.inside():
        assert model.classifier.weight.device.type == "cpu"
    weight = model.classifier.weight
    model.to("meta")
    assert model.classifier.weight is weight
    with weights.inside():
        assert model.classifier.weight.dtype == BF16
        assert model.classifier.weight.device.type == "meta"


def test_a_deep_copy_has_copies_of_its_own():
    model = Classifier(bert(2), autocast_dtype=BF16).eval()
    before = logits(model)
    other = copy.deepcopy(model)
    changed_in_place(other.model)
    assert torch.equal(logits(model), before)
    assert not torch.equal(logits(other), before)
    assert other._half.model is other.model


def test_behind_a_forward_pass_the_weights_are_the_models_own_also_where_it_fails():
    model = Classifier(bert(2), autocast_dtype=BF16)
    own = list(map(id, model.parameters()))
    model(batch())
    with pytest.raises(IndexError):
        model({**batch(), "input_ids": torch.full((8, 7), 1000)})
    assert list(map(id, model.parameters())) == own
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_weight_that_another_module_has_too_is_left_to_autocast():
    model = bert(2)
    model.classifier.weight = model.bert.embeddings.token_type_embeddings.weight = torch.nn.Parameter(torch.ones(3, 16))
    classified = Classifier(model, autocast_dtype=BF16).eval()
    classified(batch())
    assert id(model.classifier.weight) not in map(id, classified._half._weights)


def test_other_weights_for_one_call_are_computed_with():
    model = Student(bert(2), autocast_dtype=BF16).eval()
    logits(model)
    doubled = {name: 2 * value.detach() for name, value in model.named_parameters()}
    found = torch.func.functional_call(model, doubled, (batch(),))
    loaded(model.model)
    assert torch.equal(found, logits(model))


def test_a_compiled_model_has_no_copies():
    model = bert(1)
    model._compiled_call_impl = model._call_impl
    weights = HalfPrecisionWeights(model, BF16)
    with weights.inside():
        assert model.classifier.weight.dtype == torch.float32
    assert not weights._copies


def test_a_gradient_of_the_gradient_goes_through_the_copies():
    model = bert(1)
    weights = HalfPrecisionWeights(model, BF16)
    with torch.autocast("cpu", dtype=BF16), weights.inside():
        loss = model.classifier(torch.ones(2, 16)).float().pow(3).mean()
    (gradient,) = torch.autograd.grad(loss, model.classifier.weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), model.classifier.weight)
    assert second.abs().sum() > 0
