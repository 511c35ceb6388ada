"""The AdamW of transformers 4, with which released code steps: equal to a literal one, alone and in whole methods."""

import copy

import pytest
import torch

from reptile_distil.config.config import load_config
from reptile_distil.errors import ConfigError
from reptile_distil.experiments import build_method
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.adamw import ADAMW, Transformers4AdamW, adamw, decay_groups, fresh_eps
from reptile_distil.methods.metadistil import MetaDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.methods.reptile_variants import Ablation
from reptile_distil.models.classifier import Student, Teacher
from tests.helpers.models import batch, bert
from tests.oracles.adamw import LiteralAdamw
from tests.oracles.metadistil import literal_metadistil_step
from tests.oracles.reptile import literal_step
from tests.oracles.reptile_variants import literal_distillation, literal_meta_step

STEPS = 12
LR, EPS, DECAY = 1e-2, 1e-4, 0.1
# A norm that clips nothing: PyTorch divides by the norm + 1e-6, which 1e-9 would see.
SETTINGS = {
    "alpha": 0.3,
    "temperature": 4.0,
    "max_grad_norm": 1e6,
    "inner_lr": LR,
    "eps": EPS,
    "decay": DECAY,
    "inner_optimizer": "transformers4",
    "layer_map": "skip",
    "update": "adamw",
    "stays": (),
    "soft": "kl",
    "assumed_optimizer": "adamw",
    "assumed_lr": LR,
}


def gradients_of(model, step):
    generator = torch.Generator().manual_seed(step)
    return [
        torch.randn(p.shape, generator=generator, dtype=p.dtype) * 10.0 ** -(n % 9)
        for n, p in enumerate(model.parameters())
    ]


def assert_equal(model, expected, tolerance=1e-9):
    for (name, value), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=tolerance, msg=name)


def pair(**options):
    return bert(4, seed=1, dtype=torch.float64, **options), bert(2, seed=2, dtype=torch.float64, **options)


def of_transformers(model, lr=LR, weight_decay=DECAY):
    return adamw(model, lr=lr, weight_decay=weight_decay, eps=EPS, kind="transformers4")


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("kernel", [{"fused": True}, {"foreach": True}, {"foreach": False}, {"capturable": False}])
def test_twelve_steps_under_a_falling_rate_equal_the_literal_ones(kernel, decay):
    model = bert(1, dtype=torch.float64)
    expected = copy.deepcopy(model)
    optimizer = Transformers4AdamW(decay_groups(model, decay), lr=LR, eps=1e-8, **kernel)
    literal = LiteralAdamw(expected.parameters(), LR, 1e-8, decay)
    for step in range(STEPS):
        lr = LR * (1 - step / STEPS)
        literal.lr = lr
        for group in optimizer.param_groups:
            group["lr"] = lr
        for theta, wanted, gradient in zip(
            model.parameters(), expected.parameters(), gradients_of(model, step), strict=True
        ):
            theta.grad, wanted.grad = gradient, gradient.clone()
        optimizer.step()
        literal.step()
    assert_equal(model, expected, 1e-12)
    assert [group["lr"] for group in optimizer.param_groups] == [lr, lr]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [decay, 0.0]


def test_a_rate_on_the_device_takes_the_same_steps_where_each_is_counted():
    model = bert(1, dtype=torch.float64)
    expected = copy.deepcopy(model)
    on_device, plain = of_transformers(model), of_transformers(expected)
    rate = torch.tensor(LR)
    for step in range(STEPS):
        on_device.count_step()
        for optimizer, weights in ((on_device, model), (plain, expected)):
            for theta, gradient in zip(weights.parameters(), gradients_of(model, step), strict=True):
                theta.grad = gradient.clone()
            for group in optimizer.param_groups:
                group["lr"] = rate if optimizer is on_device else LR
            optimizer.step()
    assert_equal(model, expected, 1e-6)  # the rate, and what it decays by, are float32, as graphs have them
    assert [group["num_steps"] for group in on_device.param_groups] == [STEPS, STEPS]


def test_its_state_goes_on_in_another_optimizer():
    model = bert(1, dtype=torch.float64)
    expected = copy.deepcopy(model)
    optimizer, whole = of_transformers(model), of_transformers(expected)
    for step in range(STEPS):
        if step == 5:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = of_transformers(model)
            optimizer.load_state_dict(saved)
        for one, weights in ((optimizer, model), (whole, expected)):
            for theta, gradient in zip(weights.parameters(), gradients_of(model, step), strict=True):
                theta.grad = gradient.clone()
            one.step()
    assert_equal(model, expected, 0)


def test_a_closure_is_asked_once_and_its_loss_returned():
    weight = torch.nn.Parameter(torch.ones(3))
    asked = []

    def closure():
        weight.grad = None
        loss = weight.square().sum()
        loss.backward()
        asked.append(loss.item())
        return loss

    assert Transformers4AdamW([weight], lr=LR).step(closure).item() == 3.0
    assert asked == [3.0]
    assert float(weight.detach().max()) < 1


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("inner_lr", [LR, 0.0], ids=["lambda", "lambda 0, as with a warm-up"])
def test_twelve_reptile_steps_equal_the_released_ones(decay, micro_batch_size, inner_lr):
    """With decay, teacher, inner copy and student all decay."""
    (teacher, student), (slow_teacher, slow_student) = pair(), pair()
    slow_teacher.eval()
    fast = ReptileDistiller(
        teacher,
        student,
        loss=DistillationLoss(alpha=SETTINGS["alpha"], temperature=SETTINGS["temperature"]),
        student_optimizer=of_transformers(student, weight_decay=decay),
        teacher_optimizer=of_transformers(teacher, weight_decay=decay),
        inner_lr=inner_lr,
        inner_eps=EPS,
        inner_adamw="transformers4",
        inner_weight_decay=decay,
        max_grad_norm=SETTINGS["max_grad_norm"],
        micro_batch_size=micro_batch_size,
    )
    optimizers = [LiteralAdamw(m.parameters(), LR, EPS, decay) for m in (slow_student, slow_teacher)]
    settings = {**SETTINGS, "decay": decay, "inner_lr": inner_lr}
    for step in range(STEPS):
        fast.step(batch(seed=step))
        literal_step(batch(seed=step), slow_teacher, slow_student, settings, *optimizers)
    assert_equal(teacher, slow_teacher)
    assert_equal(student, slow_student)


@pytest.mark.parametrize("kind", ADAMW)
def test_decay_in_equation_1_is_that_of_a_copy_that_is_really_made(kind):
    """One inner step in closed form, and by the learner that takes several, which this one could take too."""
    taken = []
    for inner_steps in (1, 2):
        teacher, student = pair()
        method = ReptileDistiller(
            teacher,
            student,
            loss=DistillationLoss(),
            student_optimizer=of_transformers(student),
            teacher_optimizer=of_transformers(teacher),
            inner_lr=LR,
            inner_eps=EPS,
            inner_adamw=kind,
            inner_weight_decay=DECAY,
            share_forward=False,
            max_grad_norm=1e6,
            ablation=Ablation(inner_steps=inner_steps),
        )
        if method.inner_learner is None:
            method.inner_update(batch(), method._ask_student)
        else:
            method.inner_learner.learn([batch()])
        taken.append([theta.grad for theta in student.parameters()])
    for closed_form, made in zip(*taken, strict=True):
        torch.testing.assert_close(closed_form, made, rtol=0, atol=1e-9)


@pytest.mark.parametrize("inner_optimizer", ["adamw", "persistent_adamw"])
def test_several_inner_steps_equal_the_literal_ones(inner_optimizer):
    class Inner:
        """New at each training step unless it is to remember, though its weights are those of another copy."""

        literal = None

        def begin(self, model):
            if self.literal is None or inner_optimizer == "adamw":
                self.literal = LiteralAdamw(model.parameters(), LR, EPS, DECAY)
            self.begun = True

        def step(self, model):
            if not self.begun:
                self.begin(model)
            self.literal.weights = list(model.parameters())
            self.literal.step()

    (teacher, student), (slow_teacher, slow_student) = pair(), pair()
    slow_teacher.eval()
    fast = ReptileDistiller(
        teacher,
        student,
        loss=DistillationLoss(alpha=SETTINGS["alpha"], temperature=SETTINGS["temperature"]),
        student_optimizer=of_transformers(student),
        teacher_optimizer=of_transformers(teacher),
        inner_optimizer=inner_optimizer,
        inner_lr=LR,
        inner_eps=EPS,
        inner_adamw="transformers4",
        inner_weight_decay=DECAY,
        max_grad_norm=SETTINGS["max_grad_norm"],
        share_forward=False,
        ablation=Ablation(inner_steps=2),
    )
    optimizer, meta = (LiteralAdamw(m.parameters(), LR, EPS, DECAY) for m in (slow_student, slow_teacher))
    inner = Inner()
    for step in range(4):
        inner.begun = False
        batches = [batch(seed=step), batch(seed=100 + step)]
        fast.step(batches[0], batches)
        literal_meta_step(batches, slow_teacher, slow_student, SETTINGS, inner, meta)
        literal_distillation(batches[0], slow_teacher, slow_student, SETTINGS, optimizer)
    assert_equal(teacher, slow_teacher)
    assert_equal(student, slow_student)


@pytest.mark.parametrize("assumed_optimizer", ["sgd", "adamw"])
def test_twelve_metadistil_steps_equal_the_released_ones(assumed_optimizer):
    (teacher, student), (slow_teacher, slow_student) = pair(), pair(attn_implementation="eager")
    slow_teacher.eval()
    fast = MetaDistiller(
        teacher,
        student,
        loss=DistillationLoss(alpha=SETTINGS["alpha"], temperature=SETTINGS["temperature"]),
        student_optimizer=of_transformers(student, weight_decay=0.0),
        teacher_optimizer=of_transformers(teacher, lr=1e-3, weight_decay=0.0),
        assumed_optimizer=assumed_optimizer,
        assumed_lr=LR,
        assumed_eps=fresh_eps(EPS, "transformers4"),
        max_grad_norm=1e6,
    )
    settings = {**SETTINGS, "assumed_optimizer": assumed_optimizer, "eps": EPS / 0.001**0.5}
    optimizers = LiteralAdamw(slow_student.parameters(), LR, EPS), LiteralAdamw(slow_teacher.parameters(), 1e-3, EPS)
    for step in range(STEPS):
        fast.step(batch(seed=step), batch(seed=50 + step))
        literal_metadistil_step(
            batch(seed=step), batch(seed=50 + step), slow_teacher, slow_student, settings, *optimizers
        )
    assert_equal(teacher, slow_teacher)
    assert_equal(student, slow_student)


# What a configuration makes of it


def build(role, *overrides):
    config = load_config("sst2", [f"method={role}", *overrides])
    return build_method.build_method(
        config, Student(bert(2, seed=2)), Teacher(bert(4, seed=1)), config.train, role=role, num_steps=1
    )


@pytest.mark.parametrize("kind", ADAMW)
@pytest.mark.parametrize("role", ["kd", "reptile", "metadistil", "prokt", "cotrain", "lgtm"])
def test_every_optimizer_of_a_method_is_of_the_kind_that_the_configuration_says(role, kind):
    built = build(role, f"train.adamw={kind}")
    assert {type(optimizer) for optimizer in built.optimizers.values()} == {ADAMW[kind]}
    if role == "reptile":
        assert (built.method.inner_adamw, built.method.inner_eps) == (kind, 1e-8)


def test_the_published_recipe_has_the_released_codes_and_a_bare_file_has_pytorchs(tmp_path):
    assert load_config("sst2").train.adamw == load_config("sst2").teacher.train.adamw == "transformers4"
    (tmp_path / "run.yaml").write_text("task: rte\nstudent: {pretrained: x}\n")
    assert load_config(tmp_path / "run.yaml").train.adamw == "torch"


@pytest.mark.parametrize(
    ("options", "decays", "rate"),
    [
        (["train.weight_decay=0.1"], [0.0, 0.0, 0.0], 5e-5),
        (["train.weight_decay=0.1", "reptile.released=true"], [0.1, 0.0, 0.1], 5e-5),
        (["train.warmup_ratio=0.1"], [0.0, 0.0, 0.0], 5e-5),
        (["train.warmup_ratio=0.1", "reptile.released=true"], [0.0, 0.0, 0.0], 0.0),
    ],
)
def test_what_else_the_released_code_does_is_done_when_asked_for(options, decays, rate):
    built = build("reptile", *options)
    of_teacher = [group["weight_decay"] for group in built.optimizers["teacher_lr"].param_groups]
    assert [*of_teacher, built.method.inner_weight_decay] == decays
    assert built.method.inner_lr == rate


@pytest.mark.parametrize(
    "option",
    ["reptile.update=interpolate", "reptile.order=student_first", "reptile.inner_optimizer=sgd"],
)
def test_released_is_refused_where_the_released_code_has_nothing_like_it(option):
    with pytest.raises(ConfigError, match="released is about update: adamw"):
        load_config("sst2", ["reptile.released=true", option])


def test_runs_made_before_there_was_a_choice_are_those_of_pytorchs():
    ours = load_config("sst2", ["train.adamw=torch", "teacher.train.adamw=torch"]).defining_settings("reptile")
    assert "train.adamw" not in ours
    assert load_config("sst2").defining_settings("reptile")["train.adamw"] == "transformers4"
