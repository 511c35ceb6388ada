"""The step equals the method: against a literal deep-copy version, and one promise at a time."""

import copy
import dataclasses
import shutil
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reptile_distil.errors import LayerMapError
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.adamw import adamw
from reptile_distil.methods.finetune import FineTuner
from reptile_distil.methods.reptile import ReptileDistiller
from tests.helpers.models import batch, bert, changed, classifier, weights, with_rows
from tests.oracles.reptile import literal_step, literal_student_first_step

# The gradient of BERT's key biases is 0 but for rounding, and an AdamW with eps 1e-8 blows rounding up to whole steps.
# With eps = 1e-4 every weight is well-conditioned; `test_the_default_eps_...` compares the rest at 1e-8.
SETTINGS = {
    "alpha": 0.3,
    "temperature": 4.0,
    "max_grad_norm": 1.0,
    "inner_lr": 1e-2,
    "eps": 1e-4,
    "inner_optimizer": "adamw",
    "layer_map": "skip",
    "update": "adamw",
}


def teacher_optimizer(model, update, mu=1e-2, eps=1e-4):
    if update == "interpolate":
        return torch.optim.SGD(model.parameters(), lr=mu)
    return torch.optim.AdamW(model.parameters(), lr=mu, weight_decay=0, eps=eps)


def distiller(teacher, student, *, mu=1e-2, lr=1e-2, micro_batch_size=None, share_forward=True, **changes):
    settings = {**SETTINGS, **changes}
    return ReptileDistiller(
        teacher,
        student,
        loss=DistillationLoss(alpha=settings["alpha"], temperature=settings["temperature"]),
        student_optimizer=torch.optim.AdamW(student.parameters(), lr=lr, eps=settings["eps"]),
        teacher_optimizer=teacher_optimizer(teacher, settings["update"], mu, settings["eps"]),
        layer_map=settings["layer_map"],
        update=settings["update"],
        inner_optimizer=settings["inner_optimizer"],
        inner_lr=settings["inner_lr"],
        inner_eps=settings["eps"],
        max_grad_norm=settings["max_grad_norm"],
        micro_batch_size=micro_batch_size,
        share_forward=share_forward,
        order=settings.get("order", "teacher_first"),
    )


@pytest.fixture
def pair():
    return bert(4, seed=1), bert(2, seed=2)


@pytest.mark.smoke
@pytest.mark.parametrize("inner_optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("layer_map", ["first", "last", "skip", "both"])
@pytest.mark.parametrize("update", ["adamw", "interpolate"])
@pytest.mark.parametrize("share_forward", [True, False])
def test_five_steps_equal_the_literal_method(share_forward, update, layer_map, inner_optimizer):
    settings = {**SETTINGS, "update": update, "layer_map": layer_map, "inner_optimizer": inner_optimizer}
    for name, value, expected in five_steps(settings, share_forward=share_forward):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("update", ["adamw", "interpolate"])
def test_the_default_eps_equals_the_literal_method_where_gradients_are_not_0(update):
    for name, value, expected in five_steps({**SETTINGS, "update": update, "eps": 1e-8}):
        if not name.endswith("attention.self.key.bias"):
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-6, msg=name)


def test_scratch_memory_is_bounded_and_changes_nothing(monkeypatch):
    """With 100 elements at a time, every matrix of the model is cut into pieces of rows."""
    monkeypatch.setattr("reptile_distil.methods.step.MAX_SCRATCH_ELEMENTS", 100)
    for name, value, expected in five_steps(SETTINGS):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_share_forward_uses_the_same_dropout_masks_in_equations_1_and_3(micro_batch_size):
    steps = five_steps(SETTINGS, dropout=0.3, masks_of_equation_3="same", micro_batch_size=micro_batch_size)
    for name, value, expected in steps:
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_without_share_forward_equation_3_draws_dropout_masks_of_its_own(micro_batch_size):
    options = {"share_forward": False, "micro_batch_size": micro_batch_size}
    for name, value, expected in five_steps(SETTINGS, dropout=0.3, masks_of_equation_3="new", **options):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6, msg=name)


@pytest.mark.slow  # the compiler takes a minute
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("share_forward", [True, False])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_models_equal_the_literal_method(share_forward, dtype, tolerance):
    options = {"compiled": {"dynamic": True}, "share_forward": share_forward, "dtype": dtype}
    for name, value, expected in five_steps(SETTINGS, **options):
        torch.testing.assert_close(value, expected, rtol=0, atol=tolerance, msg=name)


@pytest.mark.slow  # to import the compiler takes half a minute
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_students_compiled_graph_may_be_used_for_equations_1_and_3():
    """Compiled as far as autograd goes, for any length, where PyTorch refuses a second use unless it was asked for."""
    for name, value, expected in five_steps(SETTINGS, compiled={"backend": "aot_eager", "dynamic": True}):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6, msg=name)


def five_steps(settings, *, dropout=0.0, masks_of_equation_3="same", compiled=None, dtype=torch.float64, **options):
    """Name, value and literal value of every teacher and student weight after five steps."""
    teacher = bert(4, seed=1, dtype=dtype)
    student = bert(2, seed=2, dropout=dropout, dtype=dtype)
    expected_teacher, expected_student = copy.deepcopy(teacher).eval(), copy.deepcopy(student)
    if compiled is not None:
        teacher.compile(**compiled)
        student.compile(**compiled)
    fast = distiller(teacher, student, **settings, **options)
    student_optimizer = torch.optim.AdamW(expected_student.parameters(), lr=1e-2, eps=settings["eps"])
    expected_optimizer = teacher_optimizer(expected_teacher, settings["update"], eps=settings["eps"])
    for seed in range(5):
        torch.manual_seed(seed)
        fast.step(batch(seed=seed))
        torch.manual_seed(seed)
        literal_step(
            batch(seed=seed),
            expected_teacher,
            expected_student,
            {**settings, "masks_of_equation_3": masks_of_equation_3, "rows": options.get("micro_batch_size") or 8},
            student_optimizer,
            expected_optimizer,
        )
    for model, expected in ((teacher, expected_teacher), (student, expected_student)):
        for (name, value), (_, wanted) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
            yield name, value, wanted


def test_the_literal_method_is_sensitive_to_what_it_guards(pair):
    """Equal within 1e-6 says little where nothing moves: five steps move every matched weight by far more."""
    teacher, student = pair
    before = weights(teacher)
    fast = distiller(teacher, student)
    for seed in range(5):
        fast.step(batch(seed=seed))
    name = "bert.encoder.layer.1.output.dense.weight"
    assert (teacher.get_parameter(name) - before[name]).abs().mean() > 1e-2


@pytest.mark.parametrize(
    ("layer_map", "still"), [("first", {2, 3}), ("last", {0, 1}), ("skip", {0, 2}), ("both", set()), ([2, 0], {1, 3})]
)
@pytest.mark.parametrize("update", ["adamw", "interpolate"])
def test_unmatched_teacher_layers_do_not_move_and_all_else_does(pair, update, layer_map, still):
    teacher, student = pair
    before = weights(teacher)
    distiller(teacher, student, update=update, layer_map=layer_map).step(batch())
    moved = changed(before, teacher)
    for name in before:
        layer = int(name.split(".layer.")[1].split(".")[0]) if ".layer." in name else None
        assert (name in moved) == (layer not in still), name


def test_interpolate_closes_the_fraction_mu_of_the_gap_exactly(pair):
    teacher, student = pair
    theta_t, theta_s = teacher.classifier.weight.detach().clone(), student.classifier.weight.detach().clone()
    distiller(teacher, student, update="interpolate", mu=0.25, inner_lr=0.0).step(batch())
    torch.testing.assert_close(teacher.classifier.weight.detach(), theta_t - 0.25 * (theta_t - theta_s))


def test_adamw_moves_each_matched_weight_by_mu_in_the_first_step(pair):
    teacher, student = pair
    before = teacher.classifier.weight.detach().clone()
    sign = (before - student.classifier.weight.detach()).sign()
    distiller(teacher, student, update="adamw", mu=1e-3, inner_lr=0.0, eps=1e-8).step(batch())
    torch.testing.assert_close(teacher.classifier.weight.detach(), before - 1e-3 * sign, rtol=0, atol=1e-6)


def test_both_moves_each_twin_towards_its_student_layer_not_their_mean(pair):
    teacher, student = pair
    before = weights(teacher)
    distiller(teacher, student, update="interpolate", layer_map="both", mu=0.5, inner_lr=0.0).step(batch())
    theta_s = bert(2, seed=2).bert.encoder.layer[1].output.dense.weight
    for twin in (2, 3):
        name = f"bert.encoder.layer.{twin}.output.dense.weight"
        torch.testing.assert_close(teacher.get_parameter(name), 0.5 * (before[name] + theta_s))


def test_a_student_weight_without_a_gradient_still_draws_its_teacher_weight(pair):
    teacher, student = pair
    frozen = student.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    theta_t, theta_s = teacher.bert.embeddings.word_embeddings.weight.detach().clone(), frozen.clone()
    distiller(teacher, student, update="interpolate", mu=0.25).step(batch())
    moved = teacher.bert.embeddings.word_embeddings.weight.detach()
    torch.testing.assert_close(moved, theta_t - 0.25 * (theta_t - theta_s))
    assert torch.equal(frozen, theta_s)


def test_equation_3_uses_the_updated_teacher(pair):
    """With mu = 1 and lambda = 0 the teacher becomes the student (same depth), so equation 3's KL is 0."""
    teacher, student = bert(2, seed=1), bert(2, seed=2)
    logs = distiller(teacher, student, update="interpolate", mu=1.0, inner_lr=0.0, layer_map="first").step(batch())
    assert logs["distillation_loss"].abs() < 1e-6
    assert logs["inner_loss"] > logs["loss"]


def test_the_teachers_logits_are_computed_anew_in_every_equation(pair, monkeypatch):
    teacher, student = pair
    fast = distiller(teacher, student)
    seen = []
    original = type(fast.teacher).targets
    monkeypatch.setattr(
        type(fast.teacher), "targets", lambda self, b, **asked: seen.append(original(self, b, **asked)) or seen[-1]
    )
    fast.step(batch())
    assert len(seen) == 2
    assert not torch.equal(seen[0].logits, seen[1].logits)


@pytest.mark.parametrize("update", ["adamw", "interpolate"])
def test_alpha_0_and_mu_0_is_fine_tuning_bit_for_bit(update):
    teacher, student = bert(4, seed=1), bert(2, seed=2)
    alone = copy.deepcopy(student)
    before = weights(teacher)
    reptile = distiller(teacher, student, alpha=0.0, mu=0.0, update=update)
    finetune = FineTuner(alone, student_optimizer=torch.optim.AdamW(alone.parameters(), lr=1e-2, eps=1e-4))
    for seed in range(3):
        reptile.step(batch(seed=seed))
        finetune.step(batch(seed=seed))
    assert not changed(weights(alone), student)
    assert not changed(before, teacher)


def test_stale_teacher_gradients_are_not_used(pair):
    teacher, student = pair
    other_teacher, other_student = copy.deepcopy(teacher), copy.deepcopy(student)
    for parameter in teacher.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    distiller(teacher, student).step(batch())
    distiller(other_teacher, other_student).step(batch())
    assert not changed(weights(other_teacher), teacher)


def test_the_meta_step_builds_no_graph_and_leaves_no_gradient_on_the_teacher(pair):
    teacher, student = pair
    fast = distiller(teacher, student)
    logs = fast.step(batch())
    assert all(not value.requires_grad for value in logs.values())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_student_is_never_copied(pair, monkeypatch):
    monkeypatch.setattr(copy, "deepcopy", lambda *_: pytest.fail("deep copy in the step"))
    distiller(*pair).step(batch())


@pytest.mark.parametrize(("share_forward", "num_forwards"), [(True, 1), (False, 2)])
def test_one_student_forward_serves_both_equations_where_shared(pair, share_forward, num_forwards):
    teacher, student = pair
    fast = distiller(teacher, student, share_forward=share_forward)
    forwards = []
    student.register_forward_pre_hook(lambda *_: forwards.append(1))
    fast.step(batch())
    assert len(forwards) == num_forwards


class Recorder(TorchDispatchMode):
    """Records which operators ran, and how many bytes of tensors, `old` ones aside, were alive at most."""

    def __init__(self, *old):
        super().__init__()
        self.names, self.live, self.peak = [], 0, 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in old}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage):
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self.known or not size:
            return
        self.known.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.free, address, size)

    def free(self, address, size):
        self.known.discard(address)
        self.live -= size


@pytest.mark.parametrize("update", ["adamw", "interpolate"])
@pytest.mark.parametrize("inner_optimizer", ["adamw", "sgd"])
def test_the_step_never_waits_for_the_device(pair, update, inner_optimizer, monkeypatch):
    """Reading a number, or a shape that depends on numbers, waits. transformers looks once a forward for padding."""
    monkeypatch.setattr("reptile_distil.losses.distillation._check_classes", lambda *_: None)  # of labels on the CPU
    teacher, student = pair
    fast = distiller(teacher, student, update=update, inner_optimizer=inner_optimizer)
    fast.gradient_step = dataclasses.replace(fast.gradient_step, optimizer=adamw(student, lr=1e-2))
    if update == "adamw":
        fast.teacher_optimizer = adamw(teacher, lr=1e-2)
    whole = {**batch(), "attention_mask": batch()["attention_mask"][:, None, None, :].bool()}
    with Recorder() as recorder:
        fast.step(whole)
    waiting = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select"}
    assert "aten::_foreach_sub_" in recorder.names
    assert not waiting & set(recorder.names)


@pytest.mark.parametrize("share_forward", [True, False])
@pytest.mark.parametrize("layer_map", ["skip", "both"])
@pytest.mark.parametrize("inner_optimizer", ["adamw", "sgd"])
def test_the_step_needs_one_gradient_of_the_student_and_no_copy(monkeypatch, share_forward, layer_map, inner_optimizer):
    """Weights outweigh activations here, so a copy or a second gradient would show; `both` needs one for its twins."""
    monkeypatch.setattr("reptile_distil.methods.step.MAX_SCRATCH_ELEMENTS", 2**12)
    teacher, student = bert(4, seed=1, width=128), bert(2, seed=2, width=128)
    options = {"share_forward": share_forward, "layer_map": layer_map, "inner_optimizer": inner_optimizer}
    fast = distiller(teacher, student, **options)
    fast.gradient_step = dataclasses.replace(fast.gradient_step, optimizer=adamw(student, lr=1e-2))
    fast.teacher_optimizer = adamw(teacher, lr=1e-2)
    fast.step(batch(num_rows=2, length=3))
    state = [
        value
        for o in (fast.gradient_step.optimizer, fast.teacher_optimizer)
        for s in o.state.values()
        for value in s.values()
    ]
    old = [*teacher.parameters(), *teacher.buffers(), *student.parameters(), *student.buffers(), *state]
    with Recorder(*old) as recorder:
        fast.step(batch(num_rows=2, length=3))
    gradient = sum(4 * parameter.numel() for parameter in student.parameters())
    twins = sum(4 * parameter.numel() for parameter in student.bert.encoder.parameters())
    assert recorder.peak / gradient > 1
    assert recorder.peak < 1.15 * gradient + (twins if layer_map == "both" else 0)


def test_the_teacher_stays_in_eval_mode(pair):
    teacher, student = bert(4, dropout=0.5, seed=1), bert(2, seed=2)
    fast = distiller(teacher, student)
    fast.teacher.train()
    teacher.train()
    first = fast.teacher.soft_labels(batch())
    assert not teacher.training
    assert torch.equal(first, fast.teacher.soft_labels(batch()))


def test_the_student_is_back_in_train_mode_after_an_evaluation(pair):
    teacher, student = pair
    fast = distiller(teacher, student)
    student.eval()
    fast.step(batch())
    assert student.training


def test_no_attentions_are_asked_for_which_sdpa_would_return_empty(pair):
    teacher, student = pair
    fast = distiller(teacher, student)
    asked = []
    for model in pair:
        model.register_forward_pre_hook(lambda _, args, inputs: asked.append(set(inputs)), with_kwargs=True)
    fast.step(batch())
    assert asked == 3 * [{"input_ids", "attention_mask"}]


def test_two_distillers_in_one_process_do_not_touch_each_other():
    alone_teacher, alone_student = bert(4, seed=1), bert(2, seed=2)
    alone = distiller(alone_teacher, alone_student)
    alone.step(batch())
    alone.step(batch(seed=1))

    teacher, student = bert(4, seed=1), bert(2, seed=2)
    first = distiller(teacher, student)
    second = distiller(bert(4, seed=3), bert(2, seed=4), update="interpolate", layer_map="both", alpha=0.9)
    first.step(batch())
    second.step(batch(seed=5))
    first.step(batch(seed=1))
    assert not changed(weights(alone_teacher), teacher)
    assert not changed(weights(alone_student), student)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 8])
@pytest.mark.parametrize("inner_optimizer", ["adamw", "sgd"])
def test_micro_batches_equal_one_big_batch_also_a_ragged_last_one(micro_batch_size, inner_optimizer):
    models = []
    for size in (None, micro_batch_size):
        teacher, student = bert(4, seed=1, dtype=torch.float64), bert(2, seed=2, dtype=torch.float64)
        fast = distiller(teacher, student, micro_batch_size=size, inner_optimizer=inner_optimizer)
        for seed in range(3):
            fast.step(batch(seed=seed))
        models.append((teacher, student))
    for whole, parts in zip(*models, strict=True):
        for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "mpnet"])
def test_every_architecture_moves_its_matched_layers_and_no_other(kind):
    teacher, student = classifier(kind, 4, seed=1), classifier(kind, 2, seed=2)
    before = weights(teacher)
    distiller(teacher, student, update="interpolate").step(batch())
    layers = {name.split(".layer.")[1][0] for name in changed(before, teacher) if ".layer." in name}
    assert layers == {"1", "3"}
    assert any(name.startswith("classifier") for name in changed(before, teacher))


def test_the_gap_is_the_norm_before_the_teacher_moves():
    teacher, student = bert(2, seed=1), bert(2, seed=2)
    expected = torch.sqrt(
        sum(((a - b) ** 2).sum() for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
    )
    logs = distiller(teacher, student, layer_map="first", inner_lr=0.0).step(batch())
    torch.testing.assert_close(logs["gap"], expected.detach())


def freeze(teacher):
    for part in (teacher.bert.embeddings, teacher.bert.encoder.layer[1].attention, teacher.classifier):
        part.requires_grad_(False)
    return ("embeddings.", "encoder.layer.1.attention.", "classifier.")


@pytest.mark.parametrize("order", ["teacher_first", "student_first"])
@pytest.mark.parametrize("update", ["adamw", "interpolate"])
def test_frozen_weights_of_the_teacher_stay_and_count_neither_in_the_gap_nor_in_clipping(update, order):
    teacher, student = bert(4, seed=1, dtype=torch.float64), bert(2, seed=2, dtype=torch.float64)
    frozen = freeze(teacher)
    before = weights(teacher)
    expected_teacher, expected_student = copy.deepcopy(teacher).eval(), copy.deepcopy(student)
    settings = {**SETTINGS, "update": update}
    fast = distiller(teacher, student, **settings, order=order)
    optimizers = (
        torch.optim.AdamW(expected_student.parameters(), lr=1e-2, eps=settings["eps"]),
        teacher_optimizer(expected_teacher, update),
    )
    literal = literal_step if order == "teacher_first" else literal_student_first_step
    for seed in range(5):
        gap = fast.step(batch(seed=seed))["gap"]
        literal(batch(seed=seed), expected_teacher, expected_student, settings, *optimizers)
        if update == "interpolate":  # the literal difference is not clipped, and lies in `.grad` still
            differences = [theta.grad for theta in expected_teacher.parameters() if theta.grad is not None]
            assert float(gap) == pytest.approx(float(sum(d.square().sum() for d in differences) ** 0.5), rel=1e-6)
    for model, expected in ((teacher, expected_teacher), (student, expected_student)):
        for (name, value), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6, msg=name)
    moved = changed(before, teacher)
    assert moved
    assert not any(part in name for name in moved for part in frozen)


@pytest.mark.parametrize("order", ["teacher_first", "student_first"])
def test_a_teacher_of_which_only_tables_of_unequal_length_are_free_moves_those(order):
    teacher, student = with_rows(bert(4, seed=1), 40), bert(2, seed=2)
    teacher.requires_grad_(False)
    teacher.get_input_embeddings().requires_grad_(True)
    before = weights(teacher)
    distiller(teacher, student, update="interpolate", order=order).step(batch())
    assert changed(before, teacher) == {"bert.embeddings.word_embeddings.weight"}


@pytest.mark.parametrize("free", [[], ["bert.encoder.layer.0.output.dense.weight"]])
def test_a_teacher_without_a_matched_weight_that_may_move_is_refused(pair, free):
    teacher, student = pair
    for name, theta in teacher.named_parameters():
        theta.requires_grad_(name in free)
    with pytest.raises(ValueError, match=r"every weight of the teacher that equation 2 would move is frozen: .*Know"):
        distiller(teacher, student)


def test_regression_pairs_learn_too():
    teacher, student = bert(4, num_labels=1, seed=1), bert(2, num_labels=1, seed=2)
    before = weights(student)
    logs = distiller(teacher, student, lr=1e-2).step(batch(num_labels=1))
    assert logs["distillation_loss"] > 0
    assert "classifier.weight" in changed(before, student)


def test_unequal_widths_are_refused_with_names_shapes_and_remedy():
    with pytest.raises(LayerMapError, match=r"word_embeddings.*\(30, 16\).*\(30, 8\).*equal width.*method: kd"):
        distiller(bert(4, width=16), bert(2, width=8))


def test_an_optimizer_over_another_model_is_refused(pair):
    teacher, student = pair
    with pytest.raises(ValueError, match=r"teacher_optimizer does not hold"):
        ReptileDistiller(
            teacher,
            student,
            loss=DistillationLoss(),
            student_optimizer=torch.optim.AdamW(student.parameters()),
            teacher_optimizer=torch.optim.AdamW(student.parameters()),
        )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("AdamW", {}),
        ("RMSprop", {}),
        ("Rprop", {}),
        ("Adagrad", {}),
        ("SGD", {"momentum": 0.9}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("SGD", {"weight_decay": 0.1}),
        ("SGD", {"lr": 1.5}),
    ],
)
def test_interpolate_with_another_teacher_optimizer_than_plain_sgd_is_refused(pair, kind, options):
    teacher, student = pair
    with pytest.raises(ValueError, match=r"torch.optim.SGD\(teacher.parameters\(\), lr=mu\), mu at most 1"):
        ReptileDistiller(
            teacher,
            student,
            loss=DistillationLoss(),
            student_optimizer=torch.optim.AdamW(student.parameters()),
            teacher_optimizer=getattr(torch.optim, kind)(teacher.parameters(), **{"lr": 1e-3, **options}),
            update="interpolate",
        )


def test_interpolate_away_from_the_student_is_refused(pair):
    teacher, student = pair
    with pytest.raises(ValueError, match=r"^SGD\(maximize=True\) goes up"):
        ReptileDistiller(
            teacher,
            student,
            loss=DistillationLoss(),
            student_optimizer=torch.optim.AdamW(student.parameters()),
            teacher_optimizer=torch.optim.SGD(teacher.parameters(), lr=1e-3, maximize=True),
            update="interpolate",
        )


@pytest.mark.parametrize("option", ["update", "inner_optimizer"])
def test_an_unknown_option_is_refused(pair, option):
    with pytest.raises((ValueError, KeyError), match="momentum"):
        distiller(*pair, **{option: "momentum"})
