"""The terms on hidden states: closed forms on tensors made by hand, and that nobody pays for them unasked."""

import pytest
import torch

from reptile_distil.errors import LayerMapError, ModelError
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.losses.hidden_states import HiddenLoss, PatientLoss, ProjectedHiddenLoss, match_states
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.methods.step import accumulate_gradient
from reptile_distil.models.classifier import Classifier, Outputs, Student, Teacher
from tests.helpers.models import batch, bert, changed, classifier, weights

MASK = torch.tensor([[1, 1], [1, 0]])
LAYER_MAP = ((1,), (3,))


def states(*layers):
    """Hidden states of two rows of two tokens of width two: the embeddings', far from everything, then the layers'."""
    return [torch.full((2, 2, 2), 99.0), *(torch.tensor(layer) for layer in layers)]


def compare(term, student, teacher, mask=None):
    """The term, of these hidden states."""
    outputs = (Outputs(torch.zeros(2, 3), tuple(owner)) for owner in (student, teacher))
    return term(*outputs, MASK if mask is None else mask)


JUNK = [[[7.0, 8.0], [9.0, 1.0]], [[2.0, 3.0], [4.0, 5.0]]]  # a layer that is not matched
STUDENT = states(
    [[[3.0, 4.0], [1.0, 1.0]], [[0.0, 2.0], [50.0, 50.0]]],
    [[[1.0, 0.0], [2.0, 2.0]], [[1.0, 5.0], [60.0, 60.0]]],
)
TEACHER = states(
    JUNK,
    [[[5.0, 0.0], [1.0, 3.0]], [[0.0, 7.0], [-50.0, -50.0]]],
    JUNK,
    [[[1.0, 2.0], [2.0, 2.0]], [[1.0, 1.0], [-60.0, -60.0]]],
)


def test_patient_is_the_squared_distance_of_normalised_first_tokens_without_the_last_layer():
    # Row 1: (3, 4) / 5 against (1, 0): 0.4² + 0.8² = 0.8. Row 2: the same direction, whatever the length: 0.
    assert compare(PatientLoss(1.0, LAYER_MAP), STUDENT, TEACHER).item() == pytest.approx(0.4)


def test_patient_is_the_mean_over_pairs_of_layers():
    # Layer 0 beside the teacher's 1 (0.8 and 0) and 3: (0.6, 0.8) against (1, 2) / √5, (0, 1) against (1, 1) / √2.
    expected = (0.8 + 0 + (2 - 4.4 / 5**0.5) + (2 - 2 / 2**0.5)) / 4
    assert compare(PatientLoss(1.0, ((1, 3), (2,))), STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-5)


def test_patient_takes_the_first_real_token_where_padding_is_on_the_left():
    on_the_left = [torch.cat([layer[:, :1] * 0 + 77, layer], dim=1) for layer in STUDENT]
    of_teacher = [torch.cat([layer[:, :1] * 0 - 77, layer], dim=1) for layer in TEACHER]
    mask = torch.tensor([[0, 1, 1], [0, 1, 1]])
    assert compare(PatientLoss(1.0, LAYER_MAP), on_the_left, of_teacher, mask).item() == pytest.approx(0.4)


def test_hidden_is_the_mean_square_over_real_tokens_of_each_row():
    # Layer 0, row 1: (2² + 4²) / 2 = 10 and (0² + 2²) / 2 = 2, mean 6; row 2: one real token, 5² / 2 = 12.5.
    # Layer 1, row 1: 2² / 2 = 2 and 0, mean 1; row 2: 4² / 2 = 8.
    expected = ((6 + 12.5) / 2 + (1 + 8) / 2) / 2
    assert compare(HiddenLoss(1.0, LAYER_MAP), STUDENT, TEACHER).item() == pytest.approx(expected)


def test_padding_does_not_count():
    other = [layer.clone() for layer in STUDENT]
    for layer in other:
        layer[1, 1] = 1e6
    for term in (PatientLoss(1.0, LAYER_MAP), HiddenLoss(1.0, LAYER_MAP)):
        assert compare(term, other, TEACHER) == compare(term, STUDENT, TEACHER)


@pytest.mark.parametrize("term", [PatientLoss(1.0, LAYER_MAP), HiddenLoss(1.0, LAYER_MAP)])
def test_half_precision_states_are_compared_in_float32(term):
    student, teacher = ([layer.bfloat16() for layer in owner] for owner in (STUDENT, TEACHER))
    assert compare(term, student, teacher).dtype == torch.float32


@pytest.mark.parametrize("term", [PatientLoss(1.0, LAYER_MAP), HiddenLoss(1.0, LAYER_MAP)])
@pytest.mark.parametrize("owner", ["student", "teacher"])
@pytest.mark.parametrize("given", [0, 2])
def test_missing_states_are_an_error_not_a_silent_zero(term, owner, given):
    student, teacher = (STUDENT[:given], TEACHER) if owner == "student" else (STUDENT, TEACHER[:given])
    with pytest.raises(ModelError, match=f"the {owner} gave {given} hidden states"):
        compare(term, student, teacher)


@pytest.mark.parametrize(
    "term",
    [
        PatientLoss(1.0, LAYER_MAP),
        HiddenLoss(1.0, LAYER_MAP),
        ProjectedHiddenLoss(1.0, LAYER_MAP, student_width=2, teacher_width=2),
    ],
)
@pytest.mark.parametrize("owner", ["student", "teacher"])
def test_layers_that_pool_tokens_are_refused(term, owner):
    def pooled(states):
        return [states[0], *(layer[:, :1] for layer in states[1:])]

    student, teacher = (pooled(STUDENT), TEACHER) if owner == "student" else (STUDENT, pooled(TEACHER))
    with pytest.raises(
        ModelError, match=f"the {owner}'s hidden states have length 1, but the attention mask has length 2"
    ):
        compare(term, student, teacher)


@pytest.mark.parametrize("empty", [None, ()])
def test_a_model_that_gives_no_hidden_states_or_attentions_is_an_error(empty):
    class Silent(torch.nn.Module):
        def forward(self, input_ids, output_hidden_states=False, output_attentions=False):
            from types import SimpleNamespace

            return SimpleNamespace(logits=torch.zeros(len(input_ids), 3), hidden_states=empty, attentions=empty)

    model = Classifier(Silent())
    assert model.outputs(batch()).hidden_states == ()
    for name in ("hidden_states", "attentions"):
        with pytest.raises(ModelError, match=f"Silent gives no {name.replace('_', ' ')}"):
            model.outputs(batch(), needs=[name])


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "mpnet"])
def test_a_classifier_gives_the_embeddings_output_and_that_of_each_layer(kind):
    outputs = Classifier(classifier(kind, 3)).eval().outputs(batch(), needs=["hidden_states"])
    assert [tuple(layer.shape) for layer in outputs.hidden_states] == 4 * [(8, 7, 16)]
    torch.testing.assert_close(outputs.logits, Classifier(classifier(kind, 3)).eval()(batch()))


def test_unequal_widths_are_refused():
    wide = [torch.zeros(2, 2, 3) for _ in TEACHER]
    with pytest.raises(ModelError, match="the student's is 2 and the teacher's 3"):
        compare(HiddenLoss(1.0, LAYER_MAP), STUDENT, wide)
    with pytest.raises(ModelError, match="the student's is 8 and the teacher's 16"):
        match_states(bert(4), bert(2, width=8), "skip")


def test_models_are_matched_under_a_maps_name_or_a_list_or_refused():
    assert match_states(bert(4), bert(2), "skip") == ((1,), (3,))
    assert match_states(bert(4), bert(2), [2, 0]) == ((2,), (0,))
    with pytest.raises(LayerMapError, match="3 is no multiple of 2"):
        match_states(bert(3), bert(2), "skip")


def test_a_map_that_leaves_nothing_to_compare_is_refused():
    with pytest.raises(ModelError, match=r"loss\.patient leaves the student's last layer out"):
        PatientLoss(1.0, ((1,),))
    with pytest.raises(ModelError, match=r"loss\.hidden has no layer to compare"):
        HiddenLoss(1.0, ((), ()))


def loss_with(patient=2.0, hidden=3.0, alpha=0.25):
    return DistillationLoss(alpha=alpha, hidden_terms=[PatientLoss(patient, LAYER_MAP), HiddenLoss(hidden, LAYER_MAP)])


def test_the_terms_are_added_to_the_loss_with_their_weights_and_kept_under_their_names():
    logits = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([[0.0, 2.0], [1.5, -1.0]])
    lesson = {"labels": torch.tensor([0, 1]), "attention_mask": MASK}
    terms = loss_with().compare(Outputs(logits[0], tuple(STUDENT)), Outputs(logits[1], tuple(TEACHER)), lesson)
    plain = DistillationLoss(alpha=0.25)(*logits, lesson["labels"])
    assert {name: term.item() for name, term in terms.extra.items()} == pytest.approx({"patient": 0.4, "hidden": 6.875})
    assert (terms.task, terms.distillation) == (plain.task, plain.distillation)
    assert terms.total.item() == pytest.approx(plain.total.item() + 2 * 0.4 + 3 * 6.875)
    assert set(terms.logs()) == {"loss", "task_loss", "distillation_loss", "patient_loss", "hidden_loss"}
    assert terms.logs()["patient_loss"] is terms.extra["patient"]


def test_a_loss_on_hidden_states_refuses_logits_alone():
    with pytest.raises(ValueError, match=r"call its compare\(\)"):
        loss_with()(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 1]))


def test_the_weights_of_the_terms_are_printed():
    assert repr(loss_with()).endswith("regression='mse', patient=2.0, hidden=3.0)")


def asked_of(models):
    asked = []
    for model in models:
        model.register_forward_pre_hook(lambda _, args, inputs: asked.append(set(inputs)), with_kwargs=True)
    return asked


def make(kind, teacher, student, loss, **options):
    options["student_optimizer"] = torch.optim.AdamW(student.parameters(), lr=1e-2, eps=1e-4)
    if kind == "kd":
        return KnowledgeDistiller(teacher, student, loss=loss, **options)
    teacher_optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-2, eps=1e-4)
    return ReptileDistiller(teacher, student, loss=loss, teacher_optimizer=teacher_optimizer, **options)


@pytest.mark.parametrize("kind", ["kd", "reptile"])
def test_hidden_states_are_asked_for_only_by_a_loss_that_needs_them(kind):
    for loss, expected in ((DistillationLoss(), False), (loss_with(), True)):
        teacher, student = bert(4, seed=1), bert(2, seed=2)
        asked = asked_of([teacher, student])
        make(kind, teacher, student, loss).step(batch())
        assert {"output_hidden_states" in names for names in asked} == {expected}


@pytest.mark.parametrize("kind", ["kd", "reptile"])
def test_each_method_logs_the_terms_and_learns_from_them(kind):
    students = []
    for patient, hidden in ((0.0, 0.0), (50.0, 0.0), (0.0, 5.0)):
        teacher, student = bert(4, seed=1), bert(2, seed=2)
        logs = make(kind, teacher, student, loss_with(patient, hidden)).step(batch())
        assert logs["patient_loss"] > 0
        assert logs["hidden_loss"] > 0
        students.append(student)
    assert changed(weights(students[0]), students[1])
    assert changed(weights(students[0]), students[2])


def test_weight_0_takes_the_step_without_the_term():
    students = []
    for loss in (DistillationLoss(alpha=0.25), loss_with(0.0, 0.0)):
        teacher, student = bert(4, seed=1), bert(2, seed=2)
        make("kd", teacher, student, loss).step(batch())
        students.append(student)
    assert not changed(weights(students[0]), students[1])


@pytest.mark.parametrize("kind", ["kd", "reptile"])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 5])
def test_micro_batches_equal_one_big_batch_with_hidden_state_terms(kind, micro_batch_size):
    outcomes = []
    for size in (None, micro_batch_size):
        teacher, student = bert(4, seed=1, dtype=torch.float64), bert(2, seed=2, dtype=torch.float64)
        method = make(kind, teacher, student, loss_with(), micro_batch_size=size)
        logs = [method.step(batch(seed=seed)) for seed in range(2)][-1]
        outcomes.append((student, logs))
    (whole, logs), (parts, logs_of_parts) = outcomes
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    for name, value in logs.items():
        torch.testing.assert_close(logs_of_parts[name], value, rtol=0, atol=1e-7, msg=name)


def test_the_gradient_goes_to_the_student_only():
    teacher, student = Teacher(bert(4, seed=1)), Student(bert(2, seed=2))

    def compute_loss(part):
        targets = teacher.targets(part, needs=["hidden_states"])
        return loss_with(alpha=0.0).compare(student.outputs(part, needs=["hidden_states"]), targets, part)

    accumulate_gradient(compute_loss, batch())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.model.bert.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0
