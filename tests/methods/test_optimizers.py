"""AdamW: what decays, and that the fused kernel takes the same steps."""

import copy

import pytest
import torch

from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.adamw import adamw
from reptile_distil.methods.checkpoints import CheckpointDistiller
from reptile_distil.methods.cotrain import CoTrainer
from reptile_distil.methods.finetune import FineTuner
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.lgtm import InfluenceDistiller
from reptile_distil.methods.metadistil import MetaDistiller
from reptile_distil.methods.prokt import ProKTDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from tests.helpers.models import batch, bert


def test_matrices_decay_and_vectors_do_not():
    model = bert(1)
    before = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adamw(model, lr=0.5, weight_decay=0.1).step()
    for (name, now), was in zip(model.named_parameters(), before.parameters(), strict=True):
        factor = 0.95 if now.ndim > 1 else 1.0  # 1 - 0.5 lr * 0.1 decay
        torch.testing.assert_close(now.detach(), factor * was.detach(), msg=name)


def test_five_fused_steps_equal_the_loop_over_parameters():
    model = bert(1, dtype=torch.float64)
    expected = copy.deepcopy(model)
    fused = adamw(model, lr=1e-2, weight_decay=0.1)
    matrices = [p for p in expected.parameters() if p.ndim > 1]
    vectors = [p for p in expected.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    loop = torch.optim.AdamW(groups, lr=1e-2, foreach=False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for a, b in zip(model.parameters(), expected.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator, dtype=torch.float64)
            b.grad = a.grad.clone()
        fused.step()
        loop.step()
    assert fused.param_groups[0]["fused"]
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_device_without_the_fused_kernel_gets_pytorchs_own_choice():
    optimizer = adamw(bert(1).to("meta"), lr=1e-2)
    assert not optimizer.param_groups[0]["fused"]


METHODS = {
    "finetune": lambda teacher, student, **options: FineTuner(student, **options),
    "kd": lambda *pair, **options: KnowledgeDistiller(*pair, loss=DistillationLoss(), **options),
    "reptile": lambda teacher, student, **options: ReptileDistiller(
        teacher,
        student,
        loss=DistillationLoss(),
        teacher_optimizer=torch.optim.AdamW(teacher.parameters()),
        **options,
    ),
    "prokt": lambda teacher, student, **options: ProKTDistiller(
        teacher,
        student,
        loss=DistillationLoss(),
        teacher_optimizer=torch.optim.AdamW(teacher.parameters()),
        **options,
    ),
    "cotrain": lambda teacher, student, **options: CoTrainer(
        teacher,
        student,
        loss=DistillationLoss(),
        teacher_optimizer=torch.optim.AdamW(teacher.parameters()),
        **options,
    ),
    "lgtm": lambda teacher, student, **options: InfluenceDistiller(
        teacher,
        student,
        loss=DistillationLoss(),
        teacher_optimizer=torch.optim.AdamW(teacher.parameters()),
        **options,
    ),
    "checkpoints": lambda *pair, **options: CheckpointDistiller(
        *pair, loss=DistillationLoss(), epochs=(), num_steps=1, **options
    ),
    "metadistil": lambda teacher, student, **options: MetaDistiller(
        teacher,
        student,
        loss=DistillationLoss(),
        teacher_optimizer=torch.optim.AdamW(teacher.parameters()),
        **options,
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_an_optimizer_that_would_leave_the_student_as_it_is_is_refused(method):
    teacher, student = bert(4), bert(2)
    parameters = list(student.parameters())
    for held, missing in ((teacher.parameters(), len(parameters)), (parameters[:-1], 1)):
        with pytest.raises(ValueError, match=f"student_optimizer does not hold {missing} of the {len(parameters)} "):
            METHODS[method](teacher, student, student_optimizer=torch.optim.AdamW(held))
    parameters[-1].requires_grad = False
    METHODS[method](teacher, student, student_optimizer=torch.optim.AdamW(parameters[:-1]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_refused_where_they_are_trained(method, dtype):
    """A checkpoint that was saved so is loaded so; its steps are rounded away, or become NaN by AdamW's epsilon."""
    for teacher, student in ((bert(4), bert(2).to(dtype)), (bert(4).to(dtype), bert(2))):
        owner = "student" if student.dtype == dtype else "teacher"
        if owner == "teacher" and method in ("finetune", "kd", "checkpoints"):  # there it stays as it is
            METHODS[method](teacher, student, student_optimizer=torch.optim.AdamW(student.parameters()))
            continue
        with pytest.raises(ValueError, match=rf"{owner} weights are {dtype}.*dtype=torch.float32"):
            METHODS[method](teacher, student, student_optimizer=torch.optim.AdamW(student.parameters()))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "finetune"])
def test_a_teacher_that_the_students_steps_would_change_is_refused(method):
    model = bert(2)
    with pytest.raises(ValueError, match="teacher and student share weights"):
        METHODS[method](model, model, student_optimizer=torch.optim.AdamW(model.parameters()))
    tied = bert(2)
    tied.load_state_dict(model.state_dict(), assign=True)
    with pytest.raises(ValueError, match="teacher and student share weights"):
        METHODS[method](model, tied, student_optimizer=torch.optim.AdamW(tied.parameters()))
    student = copy.deepcopy(model)
    METHODS[method](model, student, student_optimizer=torch.optim.AdamW(student.parameters()))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "finetune"])
def test_a_module_of_both_models_is_refused_although_nobody_trains_it(method):
    """It would be in eval mode after the teacher's forward pass, and so without the student's dropout."""
    teacher, student = bert(4), bert(2, seed=1)
    student.bert.embeddings = teacher.bert.embeddings.requires_grad_(False)
    with pytest.raises(ValueError, match=r"share the module 'bert.embeddings', .* a copy\.deepcopy of it"):
        METHODS[method](teacher, student, student_optimizer=torch.optim.AdamW(student.parameters()))
    student.bert.embeddings = copy.deepcopy(teacher.bert.embeddings)
    METHODS[method](teacher, student, student_optimizer=torch.optim.AdamW(student.parameters()))


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_labels_is_refused_by_name(method):
    teacher, student = bert(4), bert(2)
    distiller = METHODS[method](teacher, student, student_optimizer=torch.optim.AdamW(student.parameters()))
    unlabelled = {name: tensor for name, tensor in batch().items() if name != "labels"}
    options = {"quiz_batch": batch()} if method in ("metadistil", "lgtm") else {}
    with pytest.raises(ValueError, match="the batch has no labels, only input_ids, attention_mask"):
        distiller.step(unlabelled, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_grad_norm": -1.0}, "max_grad_norm = -1.0: expected a number above 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm = 0.0: expected a number above 0"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm = nan: expected a number above 0"),
        ({"micro_batch_size": 0}, "micro_batch_size = 0: expected at least 1"),
        ({"micro_batch_size": -2}, "micro_batch_size = -2: expected at least 1"),
    ],
)
def test_a_clip_or_a_micro_batch_that_would_reverse_or_undo_training_is_refused(method, options, message):
    if method == "metadistil" and "micro_batch_size" in options:
        pytest.skip("it takes a batch whole")
    teacher, student = bert(4), bert(2)
    optimizer = torch.optim.AdamW(student.parameters())
    with pytest.raises(ValueError, match=f"^{message}"):
        METHODS[method](teacher, student, student_optimizer=optimizer, **options)
    METHODS[method](teacher, student, student_optimizer=optimizer, max_grad_norm=float("inf"))


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("kd", "extra_rows"),
        ("reptile", "inner_lr"),
        ("reptile", "inner_eps"),
        ("reptile", "inner_weight_decay"),
        ("metadistil", "assumed_lr"),
        ("lgtm", "assumed_lr"),
        ("lgtm", "influence"),
    ],
)
def test_a_rate_or_weight_below_0_is_refused(method, option):
    teacher, student = bert(4), bert(2)
    with pytest.raises(ValueError, match=f"^{option} = -0.5: expected a number from 0 on"):
        METHODS[method](teacher, student, student_optimizer=torch.optim.AdamW(student.parameters()), **{option: -0.5})


@pytest.mark.parametrize("method", METHODS)
def test_an_optimizer_that_goes_up_the_loss_is_refused(method):
    teacher, student = bert(4), bert(2)
    with pytest.raises(ValueError, match=r"^AdamW\(maximize=True\) goes up the loss"):
        METHODS[method](teacher, student, student_optimizer=torch.optim.AdamW(student.parameters(), maximize=True))


@pytest.mark.parametrize("method", ["prokt", "cotrain", "lgtm", "metadistil"])
def test_a_teacher_that_is_to_learn_but_is_frozen_is_refused(method):
    teacher, student = bert(4).requires_grad_(False), bert(2)
    with pytest.raises(ValueError, match=r"^all weights of the teacher are frozen.*teacher\.requires_grad_\(True\)$"):
        METHODS[method](teacher, student, student_optimizer=torch.optim.AdamW(student.parameters()))


@pytest.mark.parametrize("method", METHODS)
def test_a_student_that_is_frozen_is_refused(method):
    teacher, student = bert(4), bert(2).requires_grad_(False)
    with pytest.raises(ValueError, match=r"^all weights of the student are frozen.*student\.requires_grad_\(True\)$"):
        METHODS[method](teacher, student, student_optimizer=torch.optim.AdamW(student.parameters()))
