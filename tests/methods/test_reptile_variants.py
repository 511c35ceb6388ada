"""Each ablation of the Reptile step equals a literal version of it, and changes what it names and nothing else."""

import copy
import inspect
import re

import pytest
import torch
import transformers

from reptile_distil.losses.distillation import DistillationLoss, LossTerms
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.methods.reptile_variants import Ablation, InnerLearner
from reptile_distil.methods.step import GradientStep
from reptile_distil.models.classifier import Student
from reptile_distil.models.layer_map import part_of_model
from reptile_distil.models.pretrained import start_from_teacher_layers, start_random
from tests.helpers.models import batch, bert, changed, classifier, weights
from tests.oracles.reptile_variants import LiteralAdam, LiteralSgd, literal_distillation, literal_meta_step

# eps as in test_reptile: the key biases' gradient is 0 but for rounding, which a smaller one would blow up.
SETTINGS = {
    "alpha": 0.3,
    "temperature": 4.0,
    "max_grad_norm": 1.0,
    "layer_map": "skip",
    "update": "adamw",
    "inner_optimizer": "adamw",
    "stays": (),
}
LR, MU, EPS = 1e-2, 1e-2, 1e-4


def new_teacher_optimizer(model, update, mu=MU):
    if update == "interpolate":
        return torch.optim.SGD(model.parameters(), lr=mu)
    return torch.optim.AdamW(model.parameters(), lr=mu, weight_decay=0, eps=EPS)


def distiller(teacher, student, *, lr=LR, mu=MU, share_forward=False, micro_batch_size=None, **changes):
    settings = {**SETTINGS, **changes}
    names = ("inner_steps", "inner_batch", "every", "move_head", "move_embeddings")
    return ReptileDistiller(
        teacher,
        student,
        loss=DistillationLoss(alpha=settings["alpha"], temperature=settings["temperature"]),
        student_optimizer=torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0, eps=EPS),
        teacher_optimizer=new_teacher_optimizer(teacher, settings["update"], mu),
        layer_map=settings["layer_map"],
        update=settings["update"],
        inner_optimizer=settings["inner_optimizer"],
        inner_lr=LR,
        inner_eps=EPS,
        max_grad_norm=settings["max_grad_norm"],
        micro_batch_size=micro_batch_size,
        share_forward=share_forward,
        ablation=Ablation(**{name: settings[name] for name in names if name in settings}),
    )


def models(dtype=torch.float64):
    return bert(4, seed=1, dtype=dtype), bert(2, seed=2, dtype=dtype)


@pytest.fixture
def pair():
    return models(torch.float32)


def inner_batches_of(step, settings):
    """Successive batches, the step's own first, or held-out ones."""
    steps, first = settings.get("inner_steps", 1), 100 + step if settings.get("inner_batch") == "held_out" else step
    return [batch(seed=first + number) for number in range(steps)]


@pytest.mark.parametrize(
    ("update", "changes", "stays"),
    [
        ("interpolate", {}, ()),
        ("adamw", {"inner_steps": 3}, ()),
        ("interpolate", {"inner_steps": 3, "inner_optimizer": "sgd"}, ()),
        ("adamw", {"inner_batch": "held_out"}, ()),
        ("interpolate", {"inner_batch": "held_out", "inner_optimizer": "sgd"}, ()),
        ("adamw", {"inner_batch": "held_out", "inner_steps": 2}, ()),
        ("adamw", {"inner_optimizer": "persistent_adamw"}, ()),
        ("interpolate", {"inner_optimizer": "persistent_adamw", "inner_steps": 2, "layer_map": "both"}, ()),
        ("adamw", {"every": 2}, ()),
        ("interpolate", {"every": 3, "inner_steps": 2, "inner_optimizer": "persistent_adamw"}, ()),
        ("adamw", {"move_head": False}, ("classifier", "bert.pooler")),
        ("interpolate", {"move_embeddings": False}, ("bert.embeddings",)),
        ("adamw", {"move_head": False, "move_embeddings": False}, ("classifier", "bert.pooler", "bert.embeddings")),
        ("adamw", {"inner_steps": 2, "micro_batch_size": 3}, ()),
    ],
)
def test_four_steps_equal_the_literal_ablation(update, changes, stays):
    changes = {**changes, "update": update}
    (teacher, student), (slow_teacher, slow_student) = models(), models()
    slow_teacher.eval()
    fast = distiller(teacher, student, **changes)
    settings = {**SETTINGS, **changes, "stays": stays}
    student_optimizer = torch.optim.AdamW(slow_student.parameters(), lr=LR, weight_decay=0, eps=EPS)
    teacher_optimizer = new_teacher_optimizer(slow_teacher, update)
    persistent = LiteralAdam(LR, EPS)
    for step in range(4):
        inner_batches = inner_batches_of(step, settings)
        fast.step(batch(seed=step), inner_batches if fast.ablation.uses_other_batches else None)
        if step % settings.get("every", 1) == 0:
            fresh = LiteralSgd(LR) if settings["inner_optimizer"] == "sgd" else LiteralAdam(LR, EPS)
            inner = persistent if settings["inner_optimizer"] == "persistent_adamw" else fresh
            literal_meta_step(inner_batches, slow_teacher, slow_student, settings, inner, teacher_optimizer)
        literal_distillation(batch(seed=step), slow_teacher, slow_student, settings, student_optimizer)
    for model, expected in ((teacher, slow_teacher), (student, slow_student)):
        for (name, value), (_, wanted) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"inner_steps": 3},
        {"inner_batch": "held_out"},
        {"inner_optimizer": "sgd"},
        {"inner_optimizer": "persistent_adamw"},
        {"every": 2},
        {"move_head": False},
        {"move_embeddings": False},
        {"layer_map": "last"},
        {"update": "interpolate"},
        {"mu": 1e-3},
    ],
)
def test_a_switch_of_the_meta_update_changes_the_teacher_and_nothing_of_equation_3(changes):
    """With the teacher out of equation 3's loss, the student must learn bit for bit what it learns without the switch.

    Two steps, because one fresh AdamW step is any AdamW's first, and the teacher moves in the first step anyway.
    """
    outcomes = []
    for options in ({}, changes):
        teacher, student = models(torch.float32)
        fast = distiller(teacher, student, alpha=0.0, **options)
        for step in range(2):
            inner = inner_batches_of(step, options) if fast.ablation.uses_other_batches else None
            fast.step(batch(seed=step), inner)
        outcomes.append((teacher, student))
    (plain_teacher, plain_student), (teacher, student) = outcomes
    assert not changed(weights(plain_student), student)
    assert changed(weights(plain_teacher), teacher)


@pytest.mark.parametrize("every", [2, 3])
def test_the_teacher_moves_in_the_first_step_and_every_so_many_after_it(pair, every):
    teacher, student = pair
    fast = distiller(teacher, student, every=every)
    for step in range(7):
        before = weights(teacher), weights(student)
        fast.step(batch(seed=step))
        assert bool(changed(before[0], teacher)) == (step % every == 0)
        assert changed(before[1], student)


def test_the_logs_of_a_step_in_which_the_teacher_rests_have_the_same_names(pair):
    teacher, student = pair
    fast = distiller(teacher, student, every=2)
    moves = fast.step(batch())
    gap = torch.sqrt(sum((p.teacher - p.student).square().sum() for p in fast.pairs)).detach()
    rests = fast.step(batch(seed=1))
    assert rests.keys() == moves.keys()
    assert rests["inner_loss"] == rests["loss"]
    torch.testing.assert_close(rests["gap"], gap)


@pytest.mark.parametrize("changes", [{"every": 3}, {"inner_optimizer": "persistent_adamw"}])
def test_a_run_that_is_taken_up_again_from_its_optimizers_goes_on_as_before(changes):
    """Nothing that decides a step is kept anywhere but in the weights and the optimizers."""
    teacher, student = models(torch.float32)
    whole = distiller(teacher, student, **changes)
    for step in range(2):
        whole.step(batch(seed=step))
    copies = copy.deepcopy((teacher, student))
    again = distiller(*copies, **changes)
    for old, new in (
        (whole.gradient_step.optimizer, again.gradient_step.optimizer),
        (whole.teacher_optimizer, again.teacher_optimizer),
    ):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    if whole.inner_learner:
        again.inner_learner.optimizer.load_state_dict(copy.deepcopy(whole.inner_learner.optimizer.state_dict()))
    for step in range(2, 5):
        whole.step(batch(seed=step))
        again.step(batch(seed=step))
    assert not changed(weights(teacher), copies[0])
    assert not changed(weights(student), copies[1])


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "mpnet"])
@pytest.mark.parametrize("part", ["head", "embeddings"])
def test_a_part_that_is_not_moved_stays_and_every_other_matched_weight_moves(kind, part):
    teacher, student = classifier(kind, 4, seed=1), classifier(kind, 2, seed=2)
    before = weights(teacher)
    fast = distiller(teacher, student, update="interpolate", **{f"move_{part}": False})
    plain = distiller(classifier(kind, 4, seed=1), classifier(kind, 2, seed=2), update="interpolate")
    fast.step(batch())
    plain.step(batch())
    moved, moved_plainly = changed(before, teacher), changed(before, plain.teacher.model)
    beginnings = {"head": ("classifier", "pre_classifier", "bert.pooler"), "embeddings": f"{kind}.embeddings"}[part]
    left_out = {name for name in moved_plainly if name.startswith(beginnings)}
    assert left_out
    assert moved == moved_plainly - left_out


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "mpnet"])
def test_every_weight_is_before_in_or_behind_the_encoder(kind):
    model = classifier(kind, 2)
    parts = {name: part_of_model(model, name) for name, _ in model.named_parameters()}
    for name, part in parts.items():
        expected = "embeddings" if "embeddings" in name.split(".")[1] else "head"
        if ".encoder." in name or ".transformer." in name:
            expected = "encoder"
        assert part == expected, name
    assert set(parts.values()) == {"embeddings", "encoder", "head"}


def modern_bert(num_layers):
    """Its layers hang on the base model itself, and the first of them lacks a norm."""
    size = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "pad_token_id": 0}
    config = transformers.ModernBertConfig(num_hidden_layers=num_layers, num_labels=2, **size)
    return transformers.ModernBertForSequenceClassification(config)


def test_embeddings_are_found_where_the_layers_hang_on_the_base_model_itself():
    model = modern_bert(2)
    parts = {name: part_of_model(model, name) for name, _ in model.named_parameters()}
    assert {name for name, part in parts.items() if part == "embeddings"} == {
        "model.embeddings.tok_embeddings.weight",
        "model.embeddings.norm.weight",
    }
    assert {name.split(".")[0] for name, part in parts.items() if part == "head"} == {"head", "classifier"}


def test_an_embedding_table_beside_the_layers_is_all_there_is_before_them():
    config = transformers.XLNetConfig(vocab_size=30, d_model=16, n_layer=2, n_head=2, d_inner=24, num_labels=2)
    model = transformers.XLNetForSequenceClassification(config)
    parts = {name: part_of_model(model, name) for name, _ in model.named_parameters()}
    assert [name for name, part in parts.items() if part == "embeddings"] == ["transformer.word_embedding.weight"]
    assert parts["transformer.layer.1.ff.layer_1.weight"] == "encoder"


def test_a_copied_layer_looks_at_as_many_tokens_as_the_teachers():
    teacher = modern_bert(7)
    kinds = teacher.config.layer_types
    student = start_from_teacher_layers(teacher, (0, 3, 4))
    assert student.config.layer_types == [kinds[0], kinds[3], kinds[4]] != kinds[:3]
    assert start_random(teacher, 3, seed=1).config.layer_types == kinds[:3]


@pytest.mark.parametrize("changes", [{"inner_steps": 2}, {"inner_optimizer": "persistent_adamw"}])
def test_the_inner_learner_starts_from_the_student_as_it_is_and_leaves_it_so(pair, changes):
    teacher, student = pair
    fast = distiller(teacher, student, lr=0.0, mu=0.0, **changes)
    before = weights(teacher), weights(student)
    inner = [batch(), batch(seed=1)] if "inner_steps" in changes else None
    losses = [fast.step(batch(), inner)["inner_loss"].item() for _ in range(2)]
    assert not changed(before[0], teacher)
    assert not changed(before[1], student)
    if "inner_steps" in changes:
        assert losses[0] == losses[1]


def test_frozen_student_weights_stay_put_in_the_inner_learner(pair):
    teacher, student = pair
    frozen = student.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    theta_t, theta_s = teacher.bert.embeddings.word_embeddings.weight.detach().clone(), frozen.clone()
    fast = distiller(teacher, student, update="interpolate", mu=0.25, inner_steps=2)
    fast.step(batch(), [batch(), batch(seed=1)])
    moved = teacher.bert.embeddings.word_embeddings.weight.detach()
    torch.testing.assert_close(moved, theta_t - 0.25 * (theta_t - theta_s))


@pytest.mark.parametrize("update", ["adamw", "interpolate"])
@pytest.mark.parametrize("changes", [{"share_forward": True}, {"inner_steps": 2}, {"inner_batch": "held_out"}])
def test_the_meta_update_builds_no_graph_and_nothing_is_differentiated_twice(pair, monkeypatch, update, changes):
    """Equation 2 saves no tensor for a backward pass, and no backward pass of the step is told to make a graph."""
    teacher, student = pair
    fast = distiller(teacher, student, update=update, **changes)
    asked = []
    for name in ("grad", "backward"):
        original = getattr(torch.autograd, name)

        def spy(*args, original=original, **options):
            asked.append(inspect.signature(original).bind(*args, **options).arguments.get("create_graph", False))
            return original(*args, **options)

        monkeypatch.setattr(torch.autograd, name, spy)
    update_teacher, saved = fast.update_teacher, []

    def update_and_count():
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
            return update_teacher()

    fast.update_teacher = update_and_count
    take_difference, differences = fast._take_difference, []
    fast._take_difference = lambda: differences.extend(take_difference()) or differences
    inner = inner_batches_of(0, changes) if fast.ablation.uses_other_batches else None
    gap = fast.step(batch(), inner)["gap"]
    assert asked
    assert not any(asked)
    assert saved == []
    assert gap.grad_fn is None
    assert len(differences) == len(fast.pairs)
    assert not any(difference.requires_grad for difference in differences)
    assert all(theta.grad_fn is None and theta.is_leaf for model in pair for theta in model.parameters())


@pytest.mark.parametrize(
    "changes", [{"inner_steps": 2}, {"inner_batch": "held_out"}, {"inner_optimizer": "persistent_adamw"}]
)
def test_a_shared_forward_pass_is_refused_where_it_cannot_be_shared(pair, changes):
    with pytest.raises(ValueError, match=r"share_forward = True.*set share_forward = False"):
        distiller(*pair, share_forward=True, **changes)


@pytest.mark.parametrize(
    ("changes", "inner"),
    [({}, [batch()]), ({"inner_steps": 2}, [batch()]), ({"inner_batch": "held_out"}, [batch(), batch(seed=1)])],
)
def test_inner_batches_that_do_not_fit_are_refused(pair, changes, inner):
    with pytest.raises(ValueError, match=f"{len(inner)} inner batches are given, but inner_steps is"):
        distiller(*pair, **changes).step(batch(), inner)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"inner_steps": 2}, "inner_steps is 2 and inner_batch is 'same'"),
        ({"inner_batch": "held_out"}, "inner_steps is 1 and inner_batch is 'held_out'"),
    ],
)
def test_missing_inner_batches_are_refused(pair, changes, options):
    message = f"inner batches are missing: {options}; call step(batch, inner_batches)"
    with pytest.raises(ValueError, match=re.escape(message)):
        distiller(*pair, **changes).step(batch())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner_steps": 0}, "inner_steps = 0: expected at least 1"),
        ({"every": 0}, "every = 0: expected at least 1"),
        ({"inner_batch": "quiz"}, "inner_batch = 'quiz': expected one of same, held_out"),
    ],
)
def test_an_option_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Ablation(**changes)


def test_a_renewed_inner_optimizer_is_one_fused_one_whose_moments_start_at_0():
    """Its second step from new moments is that of another new AdamW."""
    learner = InnerLearner(
        Student(bert(2, dtype=torch.float64)),
        lambda student, given: LossTerms(*[student(given).square().mean()] * 3),
        optimizer="adamw",
        lr=0.1,
        eps=1e-4,
        gradient_step=GradientStep(torch.optim.SGD([torch.zeros(1)])),
    )
    first = learner.optimizer
    learner.learn([batch(), batch(seed=1)])
    once = [theta.grad.clone() for theta in learner.student.parameters()]
    learner.learn([batch(), batch(seed=1)])
    assert learner.optimizer is first
    assert all(group["fused"] for group in first.param_groups)
    for expected, theta in zip(once, learner.student.parameters(), strict=True):
        assert torch.equal(theta.grad, expected)
