"""Several classifiers as one teacher: the mean of their probabilities, at the teacher's temperature."""

import pytest
import torch

from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.models.classifier import Classifier, Ensemble, Teacher
from tests.helpers.models import batch, bert, changed, classifier, weights
from tests.oracles.prokt import literal_logits, literal_step, literal_task


def members(num_labels=3):
    models = [bert(depth, seed=depth, num_labels=num_labels, dtype=torch.float64) for depth in (2, 3, 4)]
    return [model.eval() for model in models]


def literal_ensemble_loss(student, teachers, batch, alpha, temperature):
    rows = []
    for row in range(len(batch["labels"])):
        z, targets = literal_logits(student, batch, row), [literal_logits(t, batch, row).detach() for t in teachers]
        if len(z) == 1:
            distance = (z[0] - sum(target[0] for target in targets) / len(targets)) ** 2
        else:
            p = sum(torch.softmax(target / temperature, 0) for target in targets) / len(targets)
            q = torch.softmax(z / temperature, 0)
            distance = temperature**2 * sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))
        rows.append((1 - alpha) * literal_task(z, batch["labels"][row]) + alpha * distance)
    return sum(rows) / len(rows)


@pytest.mark.parametrize("num_labels", [3, 1])
def test_kd_from_an_ensemble_equals_kd_from_the_mean_of_the_probabilities(num_labels):
    teachers = members(num_labels)
    student, slow = (bert(2, seed=9, num_labels=num_labels, dtype=torch.float64) for _ in range(2))
    loss = DistillationLoss(alpha=0.7, temperature=3.0)
    ensemble = Ensemble([Classifier(model) for model in teachers], temperature=3.0)
    optimizer, slow_optimizer = (torch.optim.AdamW(m.parameters(), lr=1e-2, eps=1e-4) for m in (student, slow))
    before = [weights(model) for model in teachers]
    kd = KnowledgeDistiller(ensemble, student, loss=loss, student_optimizer=optimizer)
    for seed in range(3):
        lesson = batch(4, seed=seed, num_labels=num_labels)
        kd.step(lesson)
        literal_step(slow, literal_ensemble_loss(slow, teachers, lesson, 0.7, 3.0), slow_optimizer, 1.0)
    for (name, value), wanted in zip(student.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-9, msg=name)
    assert not any(changed(old, model) for old, model in zip(before, teachers, strict=True))


def test_of_a_multi_label_task_each_labels_probability_is_averaged():
    models = [
        bert(depth, seed=depth, dtype=torch.float64, problem_type="multi_label_classification") for depth in (2, 3)
    ]
    joined = Teacher(Ensemble([Classifier(model) for model in models], temperature=3.0))
    mean = sum(torch.sigmoid(Teacher(model).soft_labels(batch()) / 3) for model in models) / 2
    torch.testing.assert_close(torch.sigmoid(joined.soft_labels(batch()) / 3), mean)


@pytest.mark.parametrize("autocast_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", ["classes", "labels", "number"])
def test_the_mean_of_members_in_half_precision_is_not_rounded_to_it(kind, autocast_dtype):
    """Against what the members say, averaged in float64."""
    options = {"problem_type": "multi_label_classification"} if kind == "labels" else {}
    num_labels = 1 if kind == "number" else 3
    models = [
        Classifier(bert(depth, seed=depth, num_labels=num_labels, **options), autocast_dtype=torch.bfloat16).eval()
        for depth in (2, 3, 4)
    ]
    with torch.no_grad():
        said = [model(batch()) for model in models]
    assert all(logits.dtype == torch.bfloat16 for logits in said)
    said = [logits.double() / 3 for logits in said]
    if kind == "number":
        expected = 3 * sum(said) / 3
    elif kind == "labels":
        expected = 3 * torch.logit(sum(torch.sigmoid(logits) for logits in said) / 3)
    else:
        expected = 3 * torch.log(sum(torch.softmax(logits, 1) for logits in said) / 3)
    found = Teacher(Ensemble(models, temperature=3.0), autocast_dtype=autocast_dtype).soft_labels(batch())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_one_member_is_itself():
    model = bert(2, seed=1).eval()
    alone, joined = Teacher(model), Teacher(Ensemble([Classifier(model)], temperature=5.0))
    expected = torch.softmax(alone.soft_labels(batch()), dim=1)
    torch.testing.assert_close(torch.softmax(joined.soft_labels(batch()), dim=1), expected)


def test_members_of_several_architectures_and_widths_are_averaged():
    kinds = [classifier("bert", 2), classifier("roberta", 3, width=24), classifier("distilbert", 1)]
    joined = Teacher(Ensemble([Classifier(model) for model in kinds], temperature=2.0))
    probabilities = [torch.softmax(Teacher(model).soft_labels(batch()) / 2, dim=1) for model in kinds]
    expected = torch.stack(probabilities).mean(dim=0)
    torch.testing.assert_close(torch.softmax(joined.soft_labels(batch()) / 2, dim=1), expected)


def test_an_ensemble_of_none_is_refused():
    with pytest.raises(ValueError, match="an ensemble needs at least one member"):
        Ensemble([], temperature=1.0)
