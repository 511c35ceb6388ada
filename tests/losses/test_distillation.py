"""The loss, against values worked out by hand.

The example has T = 2 and two rows. Row 1: teacher (2 ln 3, 0), so p = (3/4, 1/4); student (0, 0), so q = (1/2, 1/2).
Row 2: teacher (0, 0), so p = (1/2, 1/2); student (2 ln 4, 0), so q = (4/5, 1/5), and (16/17, 1/17) without T.
"""

import math
import statistics
from math import inf, log, nan
from types import SimpleNamespace

import pytest
import torch

from reptile_distil.losses.distillation import DistillationLoss, task_loss, tempered_kl
from reptile_distil.methods.step import split_batch

pytestmark = pytest.mark.smoke

TEACHER = torch.tensor([[2 * log(3), 0], [0, 0]], dtype=torch.float64)
STUDENT = torch.tensor([[0, 0], [2 * log(4), 0]], dtype=torch.float64)
LABELS = torch.tensor([1, 0])
TEMPERATURE = 2.0

KL_ROW_1 = 3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2)  # 0.1308; with the arguments swapped 0.1438
KL_ROW_2 = log(5 / 4)  # 1/2 ln 5/8 + 1/2 ln 5/2 = 0.2231; swapped 0.1927
KL = 4 * (KL_ROW_1 + KL_ROW_2) / 2  # T² times the mean over the rows
CROSS_ENTROPY = (log(2) + log(17 / 16)) / 2


def one_row(student, teacher, temperature):
    return tempered_kl(torch.tensor([student]), torch.tensor([teacher]), temperature).item()


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_the_loss_mixes_its_terms_by_alpha(alpha):
    terms = DistillationLoss(alpha=alpha, temperature=TEMPERATURE)(STUDENT, TEACHER, LABELS)
    assert terms.total.item() == pytest.approx((1 - alpha) * CROSS_ENTROPY + alpha * KL, rel=1e-12)


def test_both_terms_are_given_before_weighting():
    terms = DistillationLoss(alpha=0.25, temperature=TEMPERATURE)(STUDENT, TEACHER, LABELS)
    assert terms.task.item() == pytest.approx(0.376885901, abs=1e-9)
    assert terms.distillation.item() == pytest.approx(0.707911174, abs=1e-9)
    assert terms.total.item() == pytest.approx(0.459642219, abs=1e-9)


def test_by_default_alpha_is_a_half_and_the_temperature_5_as_published():
    loss = DistillationLoss()
    assert (loss.alpha, loss.temperature, loss.regression) == (0.5, 5.0, "mse")


def test_the_settings_are_printed():
    assert repr(DistillationLoss()) == "DistillationLoss(alpha=0.5, temperature=5.0, regression='mse')"


def test_the_distillation_term_is_the_mean_over_the_rows_not_over_the_classes():
    assert tempered_kl(STUDENT, TEACHER, TEMPERATURE).item() == pytest.approx(KL, rel=1e-12)
    repeated = tempered_kl(STUDENT.repeat(5, 1), TEACHER.repeat(5, 1), TEMPERATURE)
    assert repeated.item() == pytest.approx(KL, rel=1e-12)


def test_three_classes():
    """P = (1/2, 1/4, 1/4) and q uniform: KL = 1/2 ln 3/2 + 1/2 ln 3/4."""
    expected = log(3 / 2) / 2 + log(3 / 4) / 2
    assert one_row([0.0, 0.0, 0.0], [log(2), 0.0, 0.0], 1.0) == pytest.approx(expected, rel=1e-5)


def test_kl_on_one_logit_is_0_whatever_the_logits():
    assert tempered_kl(torch.tensor([[1.0], [-3.0]]), torch.tensor([[7.0], [2.0]]), 5.0).item() == 0


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_regression_distils_the_mean_squared_difference_without_temperature(temperature):
    student, teacher = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [5.0]])
    terms = DistillationLoss(alpha=0.25, temperature=temperature)(student, teacher, torch.tensor([0.0, 3.5]))
    # (1² + 0.5²) / 2, (1² + 2²) / 2, and 0.75 * 0.625 + 0.25 * 2.5
    assert [term.item() for term in terms[:3]] == [1.09375, 0.625, 2.5]


def test_regression_none_is_the_authors_plain_fine_tuning():
    student, teacher = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [5.0]])
    loss = DistillationLoss(alpha=0.25, temperature=5.0, regression="none")
    terms = loss(student, teacher, torch.tensor([0.0, 3.5]))
    assert [term.item() for term in terms[:3]] == [0.75 * 0.625, 0.625, 0.0]


def test_regression_none_changes_nothing_for_classes():
    terms = DistillationLoss(temperature=TEMPERATURE, regression="none")(STUDENT, TEACHER, LABELS)
    assert terms.distillation.item() == pytest.approx(KL, rel=1e-12)


@pytest.mark.parametrize(("row", "expected"), [(0, KL_ROW_1), (1, KL_ROW_2)])
def test_the_teacher_comes_first_in_the_kl(row, expected):
    kl = tempered_kl(STUDENT[row : row + 1], TEACHER[row : row + 1], TEMPERATURE)
    assert kl.item() == pytest.approx(4 * expected, rel=1e-12)


def test_kl_is_taken_of_log_probabilities_so_it_is_0_for_equal_logits_and_positive_otherwise():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    assert tempered_kl(a, a, 3.0).item() == 0
    assert all(tempered_kl(x[None], y[None], 3.0) > 0 for x, y in zip(a, b, strict=True))


def test_a_constant_added_to_all_logits_changes_nothing():
    shifted = tempered_kl(STUDENT + 100, TEACHER - 30, TEMPERATURE)
    assert shifted.item() == pytest.approx(KL, rel=1e-9)


def test_the_gradient_is_t_times_the_difference_of_the_soft_probabilities():
    """d(T² KL) / d z_S = T (q - p): 2 * (1/2 - 3/4) in row 1, 2 * (4/5 - 1/2) in row 2, each over 2 rows."""
    student = STUDENT.clone().requires_grad_()
    tempered_kl(student, TEACHER, TEMPERATURE).backward()
    expected = torch.tensor([[-0.25, 0.25], [0.3, -0.3]], dtype=torch.float64)
    torch.testing.assert_close(student.grad, expected)


@pytest.mark.parametrize("temperature", [50.0, 500.0])
def test_the_gradient_does_not_vanish_at_high_temperature(temperature):
    """It tends to (z_S - z_T) / C for logits of mean 0."""
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    tempered_kl(student, torch.tensor([[0.5, -0.5]], dtype=torch.float64), temperature).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[-0.25, 0.25]], dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_logits", [1, 3])
def test_gradient_flows_to_the_student_only(num_logits):
    student = torch.randn(4, num_logits, requires_grad=True)
    teacher = torch.randn(4, num_logits, requires_grad=True)
    labels = torch.zeros(4) if num_logits == 1 else torch.zeros(4, dtype=torch.long)
    DistillationLoss()(student, teacher, labels).total.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("num_logits", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype, num_logits):
    student, teacher = (10 * torch.randn(2, 6, num_logits)).to(dtype)
    labels = torch.tensor([0, 1, 2, 0, 1, 2]) if num_logits == 3 else torch.rand(6) * 5
    halves = DistillationLoss()(student, teacher, labels)
    floats = DistillationLoss()(student.float(), teacher.float(), labels)
    for half, full in zip(halves[:3], floats[:3], strict=True):
        assert half.dtype == torch.float32
        assert torch.equal(half, full)


def test_a_student_in_half_precision_may_learn_from_a_teacher_in_float32():
    student, teacher = STUDENT.to(torch.bfloat16), TEACHER.float()
    terms = DistillationLoss(temperature=TEMPERATURE)(student, teacher, LABELS)
    assert terms.total.dtype == torch.float32


def test_double_precision_logits_stay_in_double_precision():
    assert DistillationLoss()(STUDENT, TEACHER, LABELS).total.dtype == torch.float64


def test_the_task_loss_of_classes_is_cross_entropy():
    assert task_loss(STUDENT, LABELS).item() == pytest.approx(CROSS_ENTROPY, rel=1e-12)


def test_the_task_loss_of_one_logit_is_the_mean_squared_error():
    assert task_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 3.5])).item() == 0.625


def test_integer_scores_are_taken_as_numbers():
    assert task_loss(torch.tensor([[1.5], [3.0]]), torch.tensor([1, 4])).item() == 0.625


@pytest.mark.parametrize("alpha", [-0.1, 1.1, nan, inf])
def test_an_alpha_outside_0_to_1_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha = {alpha}: expected a weight from 0 to 1"):
        DistillationLoss(alpha=alpha)


@pytest.mark.parametrize("temperature", [0.0, -5.0, nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature = {temperature}: expected a number above 0"):
        DistillationLoss(temperature=temperature)


def test_an_unknown_regression_is_refused():
    with pytest.raises(ValueError, match="regression = 'huber': expected 'mse' or 'none'"):
        DistillationLoss(regression="huber")


@pytest.mark.parametrize("shape", [(2, 3), (1, 2), (2, 1)])
def test_logits_of_other_rows_or_classes_are_refused(shape):
    with pytest.raises(ValueError, match=rf"student logits have shape \(2, 2\), teacher logits \({shape[0]}, "):
        DistillationLoss()(STUDENT, torch.zeros(shape), LABELS)


def test_a_subclass_whose_forward_nobody_calls_is_refused():
    with pytest.raises(TypeError, match=r"Mine overrides forward\(\), but methods call compare\(\)"):
        type("Mine", (DistillationLoss,), {"forward": lambda self, *_: None})
    mine = type("Mine", (DistillationLoss,), {"compare": lambda self, *_: None})
    type("MyOwn", (mine,), {"forward": lambda self, *_: None})


# Sets of labels: each label is the two classes "has it" and "has it not", with the logits z and 0

SETS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
SET_LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]], dtype=torch.float64)
SET_TARGETS = torch.tensor([[1.0, 1.0, -0.5], [4.0, 0.0, 2.0]], dtype=torch.float64)


def probability(logit, temperature=1.0):
    return 1 / (1 + math.exp(-logit / temperature))


def mean_over_labels(term):
    """The mean of `term(z_S, z_T, y)` over rows and labels."""
    rows = zip(SET_LOGITS.tolist(), SET_TARGETS.tolist(), SETS.tolist(), strict=True)
    return statistics.fmean(term(*label) for row in rows for label in zip(*row, strict=True))


def test_the_task_loss_of_sets_is_the_binary_cross_entropy_of_each_label():
    expected = mean_over_labels(lambda z, _, y: -log(probability(z if y else -z)))
    assert task_loss(SET_LOGITS, SETS).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_sets_of_labels_are_distilled_label_by_label(temperature):
    def kl(z_s, z_t, _):
        p, q = probability(z_t, temperature), probability(z_s, temperature)
        return temperature**2 * (p * log(p / q) + (1 - p) * log((1 - p) / (1 - q)))

    terms = DistillationLoss(alpha=0.25, temperature=temperature)(SET_LOGITS, SET_TARGETS, SETS)
    assert terms.distillation.item() == pytest.approx(mean_over_labels(kl), rel=1e-10)
    assert terms.total.item() == pytest.approx(0.75 * terms.task.item() + 0.25 * terms.distillation.item(), rel=1e-12)


def test_squared_differences_of_probabilities_are_those_of_each_label():
    def difference(z_s, z_t, _):
        return 4 * (probability(z_s, 2) - probability(z_t, 2)) ** 2

    terms = DistillationLoss(temperature=2.0, soft="mse")(SET_LOGITS, SET_TARGETS, SETS)
    assert terms.distillation.item() == pytest.approx(mean_over_labels(difference), rel=1e-12)


@pytest.mark.parametrize("weights", [None, torch.ones(2)])
def test_a_column_of_labels_for_one_logit_is_refused_as_it_may_be_scores_or_a_set(weights):
    with pytest.raises(ValueError, match=r"labels have shape \(2, 1\) for one logit, which is regression: give \(2,\)"):
        DistillationLoss()(SET_LOGITS[:, :1], SET_TARGETS[:, :1], 5 * SETS[:, :1])
    with pytest.raises(ValueError, match=r"labels have shape \(2, 1\) for one logit"):
        task_loss(SET_LOGITS[:, :1], 5 * SETS[:, :1], None, weights)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (2, 2), (3, 3), (2, 3, 1)])
def test_labels_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"^labels have shape .*: expected \(2,\), or of a multi-label task \(2, 3\)$"):
        task_loss(SET_LOGITS, torch.zeros(shape))


@pytest.mark.parametrize("wrong", [2.0, -1.0, math.nan])
def test_a_set_of_labels_that_holds_another_number_is_refused_where_it_is_read(wrong):
    labels = SETS.clone()
    labels[1, 0] = wrong
    for weights in (None, torch.ones(2)):
        with pytest.raises(ValueError, match=r"labels \(B, C\) hold a number outside 0 to 1"):
            task_loss(SET_LOGITS, labels, None, weights)
    assert task_loss(SET_LOGITS, labels, None, torch.tensor([2.0, 0.0])).isfinite()  # a row without a label


@pytest.mark.parametrize("wrong", [-100, -1, 2])
@pytest.mark.parametrize("class_weights", [None, torch.tensor([0.5, 3.0])])
def test_a_label_that_is_no_class_is_refused_where_it_is_read_and_rows_without_one_have_weight_0(wrong, class_weights):
    labels = torch.tensor([1, wrong])
    for row_weights in (None, torch.ones(2)):
        with pytest.raises(ValueError, match=rf"^a label is {wrong}: expected a class from 0 to 1; .*'task_weights'"):
            task_loss(STUDENT, labels, class_weights, row_weights)
    alone = task_loss(STUDENT[:1], labels[:1], class_weights)
    torch.testing.assert_close(task_loss(STUDENT, labels, class_weights, torch.tensor([2.0, 0.0])), alone)


def test_a_label_that_cannot_be_looked_at_is_in_the_mean_all_the_same():
    """As on a GPU, which is not asked: PyTorch leaves a row of -100 out unless another number stands for that."""
    given = {}

    def cross_entropy(logits, labels, **options):
        given.update(options)
        return logits[:, 0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "cross_entropy", cross_entropy)
        task_loss(STUDENT, LABELS)
    assert given["ignore_index"] < -(2**62)


# Class weights

WEIGHTS = torch.tensor([0.5, 3.0], dtype=torch.float64)


def test_a_rows_loss_is_multiplied_by_its_classs_weight_and_divided_by_the_number_of_rows():
    """Row 1 is of class 1, row 2 of class 0."""
    expected = (3.0 * log(2) + 0.5 * log(17 / 16)) / 2
    assert task_loss(STUDENT, LABELS, WEIGHTS).item() == pytest.approx(expected, rel=1e-12)
    terms = DistillationLoss(alpha=0.25, temperature=TEMPERATURE, class_weights=WEIGHTS)(STUDENT, TEACHER, LABELS)
    assert terms.total.item() == pytest.approx(0.75 * expected + 0.25 * KL, rel=1e-12)


def test_weights_of_sets_are_those_of_each_labels_positives():
    weights = [2.0, 5.0, 0.5]
    rows = zip(SET_LOGITS.tolist(), SETS.tolist(), strict=True)
    terms = [
        (weight if y else 1.0) * -log(probability(z if y else -z))
        for row in rows
        for z, y, weight in zip(*row, weights, strict=True)
    ]
    found = task_loss(SET_LOGITS, SETS, torch.tensor(weights, dtype=torch.float64))
    assert found.item() == pytest.approx(statistics.fmean(terms), rel=1e-12)


def test_weights_of_1_change_nothing():
    assert torch.equal(task_loss(STUDENT, LABELS, torch.ones(2)), task_loss(STUDENT, LABELS))


@pytest.mark.parametrize("labels", [LABELS, torch.stack([LABELS, LABELS], dim=1).double()])
def test_there_is_a_weight_for_each_class(labels):
    with pytest.raises(ValueError, match=r"class weights have shape \(3,\), .*expected \(2,\)"):
        task_loss(STUDENT, labels, torch.ones(3))
    with pytest.raises(ValueError, match=r"class weights have shape \(3,\)"):
        task_loss(STUDENT, labels, torch.ones(3), torch.ones(len(labels)))


def test_class_weights_may_be_a_list():
    loss = DistillationLoss(class_weights=WEIGHTS.tolist())
    assert torch.equal(
        loss(STUDENT, TEACHER, LABELS).task, DistillationLoss(class_weights=WEIGHTS)(STUDENT, TEACHER, LABELS).task
    )


def test_class_weights_are_refused_for_one_logit():
    with pytest.raises(ValueError, match="class weights are for classes, and one logit is regression"):
        task_loss(STUDENT[:, :1], LABELS, WEIGHTS)


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", ["classes", "sets"])
def test_the_weighted_loss_of_the_parts_of_a_batch_adds_up_to_the_batchs(kind, count, micro_batch_size):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (7,) if kind == "classes" else (7, 2), generator=generator)
    batch = {"logits": logits, "labels": labels if kind == "classes" else labels.double()}
    added = sum(
        share * task_loss(part["logits"], part["labels"], WEIGHTS)
        for rank in range(count)
        for part, share in split_batch(batch, micro_batch_size, SimpleNamespace(rank=rank, count=count))
    )
    assert added.item() == pytest.approx(task_loss(logits, batch["labels"], WEIGHTS).item(), rel=1e-12)
