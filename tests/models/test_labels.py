"""Labels of a fine-tuned model, the task and `teacher.label_names`: matched by name, and never confused."""

import pytest
import torch

from reptile_distil.data.tasks import Task
from reptile_distil.errors import ModelError
from reptile_distil.models.classifier import Classifier
from reptile_distil.models.pretrained import load_finetuned
from tests.helpers.models import batch, bert


def task(*labels):
    return Task(name="own", text_columns=("text",), label_names=labels, metrics=("accuracy",), splits={"train": ()})


def save(folder, *labels):
    """A model whose outputs are said to be these labels, in the folder."""
    model = bert(2, num_labels=len(labels))
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    model.save_pretrained(folder)
    return model


def logits_of(model):
    with torch.no_grad():
        return Classifier(model).eval()(batch())


ALIKE = [
    ("US", "us"),
    ("not entailment", "not_entailment"),
    ("re-sign", "re sign", "resign"),
    ("a", "a ", "A", "b"),
    ("New York", "new-york", "NEW_YORK"),
]


@pytest.mark.parametrize("labels", ALIKE)
def test_labels_that_differ_in_spelling_alone_are_loaded_as_they_were_trained(tmp_path, labels):
    saved = save(tmp_path, *labels)
    model = load_finetuned(str(tmp_path), task(*labels))
    assert torch.equal(logits_of(model), logits_of(saved))
    assert list(model.config.id2label.values()) == list(labels)


@pytest.mark.parametrize("labels", ALIKE)
def test_labels_that_differ_in_spelling_alone_are_put_in_the_tasks_order(tmp_path, labels):
    saved = save(tmp_path, *reversed(labels))
    model = load_finetuned(str(tmp_path), task(*labels))
    assert torch.equal(logits_of(model), logits_of(saved).flip(1))


@pytest.mark.parametrize(
    ("has", "wanted"),
    [
        (("US", "us"), ("Us", "uS")),
        (("US", "us"), ("us", "them")),
        (("a-b", "c"), ("a-b", "a b")),
        (("yes", "no", "No"), ("yes", "no", "NO")),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(tmp_path, has, wanted):
    save(tmp_path, *has)
    with pytest.raises(ModelError, match=f"its labels are {', '.join(has)}, but task own has {', '.join(wanted)}; if"):
        load_finetuned(str(tmp_path), task(*wanted))


@pytest.mark.parametrize("labels", ALIKE)
def test_given_names_that_differ_in_spelling_alone_are_followed(tmp_path, labels):
    saved = save(tmp_path, *(f"LABEL_{index}" for index in range(len(labels))))
    model = load_finetuned(str(tmp_path), task(*labels), labels[::-1])
    assert torch.equal(logits_of(model), logits_of(saved).flip(1))


CONTRADICTIONS = [
    (("no", "yes"), ("yes", "no")),
    (("No", "YES"), ("yes", "no")),
    (("a", "b", "c"), ("b", "a", "c")),
    (("US", "us"), ("us", "US")),
]


@pytest.mark.parametrize(("has", "given"), CONTRADICTIONS)
def test_given_names_that_contradict_the_models_own_are_refused_with_both(tmp_path, has, given):
    save(tmp_path, *has)
    message = (
        f"^{tmp_path}: its labels are {', '.join(has)}, but teacher.label_names says {', '.join(given)}; "
        r"leave teacher\.label_names out, or correct id2label in the model's config\.json$"
    )
    with pytest.raises(ModelError, match=message):
        load_finetuned(str(tmp_path), task(*sorted(given)), given)


@pytest.mark.parametrize("given", [("maybe", "no"), ("yes",), ("yes", "no", "no"), ("yes", "yes")])
def test_given_names_that_are_not_the_tasks_are_refused_beside_good_ones(tmp_path, given):
    save(tmp_path, "no", "yes")
    with pytest.raises(ModelError, match=f"its labels are {', '.join(given)}, but task own has no, yes; if they mean"):
        load_finetuned(str(tmp_path), task("no", "yes"), given)


@pytest.mark.parametrize("given", [("no", "yes"), ("NO", "Yes "), ()])
def test_given_names_that_say_what_the_model_says_change_nothing(tmp_path, given):
    saved = save(tmp_path, "no", "yes")
    assert torch.equal(logits_of(load_finetuned(str(tmp_path), task("no", "yes"), given)), logits_of(saved))
