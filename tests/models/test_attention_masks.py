"""The mask that attention adds, and none where there is no padding, against the usual mask (B, L)."""

import numpy as np
import pytest
import torch

from reptile_distil.data.batches import Batches
from reptile_distil.data.features import Features, attention_bias
from reptile_distil.methods.step import split_batch
from reptile_distil.models import classifier as classifiers
from reptile_distil.models.classifier import TAKE_A_BIAS, Classifier, takes_a_bias
from reptile_distil.models.packing import Layout
from reptile_distil.models.toy import toy_tokenizer
from tests.helpers.models import batch, classifier, masked_kinds

RAGGED, FULL = (7, 3, 9, 1, 9, 2), (6, 6, 6)


def rows(lengths, dtype=torch.float32):
    """A batch with ids, mask and what the CPU knows of a batch on a GPU."""
    given = batch(len(lengths), max(lengths))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    plain = {**given, "attention_mask": mask}
    known = {**plain, "lengths": torch.tensor(lengths)}
    if min(lengths) == max(lengths):
        return plain, known
    return plain, {**known, "attention_bias": attention_bias(mask, dtype)[..., : max(lengths)]}


def gradients(model, given):
    model.zero_grad()
    model(given).float().square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", masked_kinds())
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [RAGGED, FULL])
@pytest.mark.parametrize("autocast_dtype", [None, torch.bfloat16])
def test_logits_and_gradients_are_those_with_the_usual_mask(kind, attention, lengths, autocast_dtype):
    model = classifier(kind)
    model.set_attn_implementation(attention)
    assert takes_a_bias(model)
    classified = Classifier(model, autocast_dtype=autocast_dtype).eval()
    usual, known = rows(lengths, autocast_dtype or torch.float32)
    atol = 1e-6 if autocast_dtype is None else 1e-2
    torch.testing.assert_close(classified(known), classified(usual), rtol=0, atol=atol)
    expected, found = gradients(classified, usual), gradients(classified, known)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=10 * atol, atol=10 * atol, msg=name)


@pytest.mark.parametrize("kind", masked_kinds())
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_is_not_seen(kind, attention):
    model = classifier(kind)
    model.set_attn_implementation(attention)
    classified, (_, known) = Classifier(model).eval(), rows(RAGGED)
    others = torch.where(known["attention_mask"] == 0, 29, known["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(classified({**known, "input_ids": others}), classified(known), rtol=0, atol=1e-6)


def test_every_model_type_that_takes_it_is_checked():
    assert {classifier(kind).config.model_type for kind in masked_kinds()} == TAKE_A_BIAS


def test_another_model_gets_the_usual_mask(monkeypatch):
    monkeypatch.setattr(classifiers, "TAKE_A_BIAS", {"roberta"})
    model, (usual, known) = classifier("bert"), rows(RAGGED)
    seen = []
    forward = model.forward
    classified = Classifier(model)
    model.forward = lambda **inputs: seen.append(inputs["attention_mask"]) or forward(**inputs)
    assert torch.equal(classified(known), classified(usual))
    assert [mask.ndim for mask in seen] == [2, 2]


def test_an_older_transformers_gets_the_usual_mask(monkeypatch):
    model = classifier("bert")
    monkeypatch.delattr(f"{type(model).__module__}.create_bidirectional_mask")
    assert not takes_a_bias(model)


def test_lengths_on_a_device_are_not_read():
    """They would have to be waited for; here the device is one without values."""
    given = {**batch(), "lengths": torch.full((8,), 7, device="meta")}
    assert torch.equal(Classifier(classifier("bert")).eval()(given), Classifier(classifier("bert")).eval()(batch()))


def test_a_micro_batch_has_its_own_rows_part():
    _, known = rows(RAGGED)
    for part, _ in split_batch({**known, "labels": torch.zeros(6)}, 4):
        assert len(part["lengths"]) == len(part["attention_bias"]) == len(part["labels"])
    assert part["lengths"].tolist() == [9, 2]


@pytest.mark.parametrize("width", [1, 7, 8, 9])
def test_the_bias_is_0_for_tokens_and_its_rows_are_aligned(width):
    mask = (torch.arange(width) < torch.tensor([[width], [1]])).long()
    bias = attention_bias(mask, torch.bfloat16)
    assert torch.equal(bias[:, 0, 0, :width] == 0, mask.bool())
    assert bias.dtype == torch.bfloat16
    assert bias.stride(0) % 8 == 0
    assert (bias[1, 0, 0, 1:width] == torch.finfo(torch.bfloat16).min).all()


@pytest.mark.parametrize("lengths", [RAGGED, FULL, (4,)])
def test_a_layout_from_lengths_is_the_one_from_the_mask(lengths):
    usual, _ = rows(lengths)
    of_mask = Layout.of(usual["attention_mask"])
    known = torch.tensor(lengths)
    of_lengths = Layout.of_lengths(known, max(lengths), torch.device("cpu"))
    for name in ("mask", "tokens", "bounds"):
        assert torch.equal(getattr(of_lengths, name), getattr(of_mask, name))
    assert Layout.of_lengths(known, max(lengths), torch.device("cpu")) is of_lengths
    assert torch.equal(of_mask.bias(torch.float32)[:, 0, 0] == 0, of_mask.mask)


def test_on_the_cpu_a_batch_is_what_it_was():
    features = Features.end_to_end({"input_ids": np.arange(5)}, np.array([3, 2]), labels=np.zeros(2, dtype=np.int64))
    given = Batches(features, toy_tokenizer(), batch_size=2).batch(np.arange(2))
    assert set(given) == {"input_ids", "attention_mask", "labels"}
