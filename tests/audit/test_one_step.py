"""One step from each teacher, against the same on deep copies; and nothing that was measured changes the run."""

import copy
import os
import signal
import time

import pytest
import torch

from reptile_distil.audit.one_step import OneStepAudit, steps_from, take_steps
from reptile_distil.data.batches import StepBatches
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.adamw import adamw
from reptile_distil.methods.cotrain import CoTrainer
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.metadistil import MetaDistiller
from reptile_distil.methods.prokt import ProKTDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.models.classifier import Student, Teacher
from reptile_distil.runtime.interrupts import Interrupted
from tests.helpers.models import batch, bert

METHODS = ("adamw", "interpolate", "student_first", "metadistil", "prokt", "cotrain")


def build(name, *, mu=0.1, dropout=0.1):
    """The method, its teacher and student, the student's optimizer and all optimizers."""
    teacher = Teacher(bert(4, seed=1, dtype=torch.float64))
    student = Student(bert(2, seed=2, dtype=torch.float64, dropout=dropout))
    optimizer = adamw(student, lr=1e-2)
    shared = {"loss": DistillationLoss(), "student_optimizer": optimizer}
    if name in ("adamw", "metadistil", "prokt", "cotrain"):
        teacher_optimizer = adamw(teacher, lr=1e-2)
    else:
        teacher_optimizer = torch.optim.SGD(teacher.parameters(), lr=mu)
    shared["teacher_optimizer"] = teacher_optimizer
    if name == "metadistil":
        method = MetaDistiller(teacher, student, **shared)
    elif name == "prokt":
        method = ProKTDistiller(teacher, student, **shared)
    elif name == "cotrain":
        method = CoTrainer(teacher, student, **shared)
    else:
        update = "adamw" if name == "adamw" else "interpolate"
        order = "student_first" if name == "student_first" else "teacher_first"
        method = ReptileDistiller(teacher, student, update=update, order=order, inner_lr=1e-2, **shared)
    return method, teacher, student, optimizer, [optimizer, teacher_optimizer]


def audit_of(built, frozen, **options):
    method, teacher, student, optimizer, optimizers = built
    return OneStepAudit(
        method=method,
        teacher=teacher,
        student=student,
        student_optimizer=optimizer,
        optimizers=optimizers,
        loss=DistillationLoss(),
        max_grad_norm=1.0,
        frozen=frozen,
        **options,
    )


def given(name, seed):
    return StepBatches(batch(seed=seed), (batch(seed=seed + 50),) if name == "metadistil" else ())


def after_some_steps(name, num_steps=3, **options):
    built = build(name, **options)
    frozen = copy.deepcopy(built[1])
    for seed in range(num_steps):
        taken = given(name, seed)
        built[0].step(taken.batch, *taken.extra)
    return built, frozen


def loss_on(student, probe):
    student.eval()
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(student(probe), probe["labels"]))


def loss_after_kd(built, teacher, taken, probe):
    """On copies that share nothing with what is audited."""
    _, _, student, optimizer, _ = copy.deepcopy(built)
    torch.manual_seed(7)
    KnowledgeDistiller(teacher, student, loss=DistillationLoss(), student_optimizer=optimizer).step(taken.batch)
    return loss_on(student, probe)


class CountingLoss(DistillationLoss):
    """Divides by the number of times it was asked, in a buffer that is another tensor every time."""

    def __init__(self):
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))

    def compare(self, student, teacher, batch):
        self.asked = self.asked + 1
        terms = super().compare(student, teacher, batch)
        return terms._replace(total=terms.total / self.asked)


def test_a_buffer_that_becomes_another_tensor_is_put_back_too():
    built, frozen = after_some_steps("prokt", num_steps=0)
    audited = audit_of(built, frozen)
    audited.loss = built[0].loss = CountingLoss()
    for seed in (1, 1):
        measured = audited.measure(given("prokt", 1), batch(seed=9), seed=seed)
        assert audited.loss.asked == 0
    assert measured["frozen"] == measured["so_far"]


@pytest.mark.parametrize(
    ("name", "num_steps"),
    [
        *((name, 3) for name in ("adamw", "student_first", "metadistil")),
        ("prokt", 0),
        *(pytest.param(name, 3, marks=pytest.mark.slow) for name in ("interpolate", "prokt", "cotrain")),
        *(pytest.param(name, 0, marks=pytest.mark.slow) for name in METHODS if name != "prokt"),
    ],
)
def test_each_loss_is_that_after_one_step_on_copies(name, num_steps):
    built, frozen = after_some_steps(name, num_steps)
    taken, probe, other = given(name, 9), batch(16, seed=99), Teacher(bert(3, seed=5, dtype=torch.float64))
    moved = copy.deepcopy(built)
    torch.manual_seed(7)
    moved[0].step(taken.batch, *taken.extra)
    expected = {
        "before": loss_on(copy.deepcopy(built[2]), probe),
        "frozen": loss_after_kd(built, frozen, taken, probe),
        "so_far": loss_after_kd(built, built[1], taken, probe),
        "moved": loss_after_kd(built, moved[1], taken, probe),
        "other": loss_after_kd(built, other, taken, probe),
    }
    measured = audit_of(built, frozen, other=other).measure(taken, probe, seed=7)
    assert {name: measured[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert len(set(expected.values())) == (5 if num_steps else 4)  # at the start nothing has moved yet


def tensors_of(built):
    _, teacher, student, _, optimizers = built
    values = [*teacher.state_dict().values(), *student.state_dict().values()]
    for optimizer in optimizers:
        values += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return [value.clone() for value in values], [dict(g, params=None) for o in optimizers for g in o.param_groups]


@pytest.mark.parametrize("num_steps", [0, 2])
@pytest.mark.parametrize("name", METHODS)
def test_what_is_measured_changes_no_bit_of_the_run(name, num_steps):
    built, frozen = after_some_steps(name, num_steps)
    tensors, groups = tensors_of(built)
    audit_of(built, frozen).measure(given(name, 9), batch(16, seed=99), seed=7)
    tensors_after, groups_after = tensors_of(built)
    assert groups_after == groups
    assert len(tensors_after) == len(tensors)
    assert all(torch.equal(now, then) for now, then in zip(tensors_after, tensors, strict=True))
    assert all(parameter.grad is None for model in built[1:3] for parameter in model.parameters())


def test_a_teacher_that_goes_nowhere_is_worth_exactly_what_it_was():
    built, frozen = after_some_steps("interpolate", mu=0.0)
    measured = audit_of(built, frozen).measure(given("interpolate", 9), batch(16, seed=99), seed=7)
    assert measured["moved"] == measured["so_far"] == measured["frozen"] != measured["before"]


def test_a_teacher_that_takes_no_steps_is_not_moved():
    built, frozen = after_some_steps("interpolate")
    measured = audit_of(built, frozen, takes_steps=False).measure(given("interpolate", 9), batch(16, seed=99), seed=7)
    assert measured.keys() == {"before", "frozen", "so_far"}


@pytest.mark.parametrize("name", ["adamw", "interpolate", "student_first"])
def test_the_part_that_knows_the_batch_is_the_inner_step_beside_the_difference(name):
    built, frozen = after_some_steps(name)
    taken = given(name, 9)
    method, teacher, student, optimizer, _ = copy.deepcopy(built)
    before = copy.deepcopy(student)
    if name != "student_first":
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.0)  # equation 1 begins afresh
    torch.manual_seed(7)
    KnowledgeDistiller(teacher, student, loss=DistillationLoss(), student_optimizer=optimizer).step(taken.batch)
    theta_s, theta_s_before = dict(student.named_parameters()), dict(before.named_parameters())
    theta_t = dict(teacher.named_parameters())
    step = gap = 0.0
    for pair in method.pairs:
        one = theta_s["model." + pair.student_name.removeprefix("model.")]
        step += (one - theta_s_before["model." + pair.student_name.removeprefix("model.")]).square().sum().item()
        gap += (theta_t["model." + pair.teacher_name.removeprefix("model.")] - one).square().sum().item()
    measured = audit_of(built, frozen).measure(taken, batch(16, seed=99), seed=7)
    assert measured["knows"] == pytest.approx((step / gap) ** 0.5, rel=1e-6)
    assert 0 < measured["knows"] < 1


def test_where_no_weight_differs_no_part_of_it_knows_the_batch():
    built = build("interpolate")
    method, teacher, _, optimizer, _ = built
    frozen = copy.deepcopy(teacher)
    for pair in method.pairs:
        pair.student.data.copy_(pair.teacher.data)
    method.inner_lr = optimizer.param_groups[0]["lr"] = 0.0
    assert "knows" not in audit_of(built, frozen).measure(given("interpolate", 9), batch(16, seed=99), seed=7)


def test_losses_are_those_of_each_row():
    built, frozen = after_some_steps("interpolate")
    probe = batch(16, seed=99)
    measured = audit_of(built, frozen).measure_rows(given("interpolate", 9), probe, seed=7)
    expected = [loss_on(built[2], {name: rows[row : row + 1] for name, rows in probe.items()}) for row in range(16)]
    assert measured["before"] == pytest.approx(expected, abs=1e-12)
    assert all(losses.shape == (16,) for name, losses in measured.items() if name != "knows")


def test_steps_go_on_from_any_step_over_the_end_of_an_epoch():
    class Numbered:
        num_batches = 3

        def steps(self, epoch, *, skip=0):
            yield from ((epoch, number) for number in range(skip, 3))

    steps = steps_from(Numbered(), 4)
    assert [next(steps) for _ in range(4)] == [(2, 1), (2, 2), (3, 0), (3, 1)]


class InterruptedStep:
    """Gets a Ctrl-C in a destructor, where Python swallows what is raised."""

    def __init__(self):
        self.num_steps = 0

    def step(self, batch):
        class Dying:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)  # a signal is handled between two instructions

        self.num_steps += 1
        if self.num_steps == 2:
            dying = Dying()
            del dying
        return {"loss": torch.zeros(())}


def test_a_ctrl_c_ends_training_after_its_step_wherever_it_comes():
    method, batches = InterruptedStep(), (given("kd", seed) for seed in range(9))
    with pytest.raises(Interrupted) as error:
        take_steps(method, batches, {}, start=0, until=9, title="audited")
    assert (method.num_steps, error.value.exit_code) == (2, 130)
