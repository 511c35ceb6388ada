"""Models in folders, and what a test of them looks at."""

import json

import pytest
import torch

from reptile_distil.data.tasks import get_task
from reptile_distil.models.classifier import Classifier
from tests.helpers.models import batch, weights

KINDS = pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
WITH_MPNET = pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "mpnet"])
OUTPUT_LAYER = {
    "bert": "classifier",
    "roberta": "classifier.out_proj",
    "distilbert": "classifier",
    "electra": "classifier.out_proj",
}
MNLI, RTE, STSB = get_task("mnli"), get_task("rte"), get_task("stsb")


def save(model, folder, labels=None):
    """The folder's name, with the model in it."""
    if labels is not None:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
    model.save_pretrained(folder)
    return str(folder)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def head(model):
    """The weights outside the encoder, by name."""
    prefix = model.base_model_prefix + "."
    return {name: weight for name, weight in weights(model).items() if not name.startswith(prefix)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logits_of(model):
    with torch.no_grad():
        return Classifier(model).eval()(batch())
