"""Architectures whose layers are not all alike, or whose configuration lists something of each layer."""

import logging
import re

import pytest
import torch
import transformers

from reptile_distil.errors import LayerMapError, ModelError
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.models.layer_map import match_models, pair_parameters
from reptile_distil.models.pretrained import start_from_teacher_layers, start_random
from reptile_distil.runtime.each_line_once import log_once
from tests.helpers.architectures import CONFIGS
from tests.helpers.models import batch, changed, weights

COMMON = {"vocab_size": 30, "num_labels": 3, "pad_token_id": 0, "hidden_size": 16, "num_attention_heads": 2}
COMMON |= {"intermediate_size": 32, "max_position_embeddings": 32}


def modernbert(depth, **options):
    return transformers.ModernBertConfig(
        **COMMON,
        num_hidden_layers=depth,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
        **{"local_attention": 4, "attention_dropout": 0.0, **options},
    )


def esm(depth):
    return transformers.EsmConfig(**COMMON, num_hidden_layers=depth, mask_token_id=4)


def longformer(depth):
    return transformers.LongformerConfig(
        **COMMON, num_hidden_layers=depth, attention_window=[4, 8, 4, 8][:depth], sep_token_id=3
    )


def deberta(depth):
    return transformers.DebertaV2Config(
        **COMMON, num_hidden_layers=depth, pos_att_type=["c2p", "p2c"], relative_attention=True
    )


def smollm(depth):
    return transformers.SmolLM3Config(
        **COMMON, num_hidden_layers=depth, num_key_value_heads=2, no_rope_layers=[1, 0, 1, 0][:depth]
    )


def make(config, seed=0):
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for theta in model.parameters():  # also norms, which all models start with alike
            theta.add_(0.1 * torch.randn(theta.shape))
    return model.eval()


ALL = pytest.mark.parametrize("config", [modernbert, esm, longformer, deberta, smollm])


@ALL
@pytest.mark.parametrize("layers", [(1, 3), (0, 2), (3,)])
def test_the_layers_that_are_there_are_copied(config, layers):
    teacher = make(config(4))
    student = start_from_teacher_layers(teacher, layers)
    of_teacher = weights(teacher)
    for name, weight in weights(student).items():
        source = re.sub(r"(layers?)\.(\d+)\.", lambda match: f"{match[1]}.{layers[int(match[2])]}.", name)
        if source in of_teacher and of_teacher[source].shape == weight.shape:
            assert torch.equal(weight, of_teacher[source]), name
        else:
            assert "attn_norm" in name or "contact_head" in name, name
    assert student(input_ids=batch()["input_ids"]).logits.shape == (8, 3)


@pytest.mark.parametrize("config", [esm, longformer, deberta, smollm])
def test_all_layers_give_the_teachers_logits(config):
    teacher = make(config(4))
    student = start_from_teacher_layers(teacher, (0, 1, 2, 3)).eval()
    inputs = {name: batch()[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(student(**inputs).logits, teacher(**inputs).logits)


def test_weights_that_the_copied_layers_do_not_have_are_counted(caplog):
    with caplog.at_level(logging.INFO, logger="reptile_distil"):
        start_from_teacher_layers(make(modernbert(4)), (1, 0))
    line = "1 weights that the copied layers do not have start anew: model.layers.1.attn_norm.weight"
    assert caplog.messages == [line]


@pytest.mark.parametrize(
    ("config", "key", "expected"),
    [
        (longformer, "attention_window", [8, 8]),
        (smollm, "no_rope_layers", [0, 0]),
        (modernbert, "layer_types", ["sliding_attention", "full_attention"]),
    ],
)
def test_what_a_configuration_lists_of_each_layer_is_cut(config, key, expected):
    teacher = make(config(4))
    assert getattr(start_from_teacher_layers(teacher, (1, 3)).config, key) == expected
    assert len(getattr(start_random(teacher, 2, seed=0).config, key)) == 2


def test_a_list_that_is_as_long_by_chance_is_not_cut():
    assert start_from_teacher_layers(make(deberta(2)), (0,)).config.pos_att_type == ["c2p", "p2c"]


def test_a_configuration_that_cannot_be_cut_is_one_sentence(monkeypatch):
    teacher = make(longformer(2))

    def from_dict(*_, **__):
        raise ValueError("no\nsuch depth")

    monkeypatch.setattr(transformers.LongformerConfig, "from_dict", from_dict)
    message = r"^LongformerConfig: cannot be cut to 1 layers: ValueError: no such depth; give the student a checkpoint"
    with pytest.raises(ModelError, match=message):
        start_from_teacher_layers(teacher, (0,))


def reptile_step(teacher, student, name):
    distiller = ReptileDistiller(
        teacher,
        student,
        loss=DistillationLoss(alpha=0.5, temperature=2.0),
        layer_map=name,
        student_optimizer=torch.optim.AdamW(student.parameters(), lr=1e-3),
        teacher_optimizer=torch.optim.AdamW(teacher.parameters(), lr=1e-3, weight_decay=0.0),
        inner_lr=1e-3,
    )
    distiller.step(batch())


@pytest.fixture(autouse=True)
def nothing_was_said_before():
    log_once.cache_clear()


ALONE_IN_MODERNBERT = {
    "first": [],
    "last": ["model.layers.2.attn_norm.weight"],
    "skip": ["model.layers.1.attn_norm.weight"],
    "both": ["model.layers.1.attn_norm.weight"],
}


@pytest.mark.parametrize(("name", "alone"), ALONE_IN_MODERNBERT.items())
def test_modernbert_takes_a_reptile_step_and_a_weight_without_a_partner_stays_where_it_is(name, alone, caplog):
    teacher, student = make(modernbert(4)), make(modernbert(2), seed=1)
    before = weights(teacher)
    with caplog.at_level(logging.INFO, logger="reptile_distil"):
        reptile_step(teacher, student, name)
        match_models(teacher, student, name)  # as when a pair is checked first
    moved = changed(before, teacher)
    resolved = {"first": [0, 1], "last": [2, 3], "skip": [1, 3], "both": [0, 1, 2, 3]}[name]
    in_matched = {key for key in before if re.match(rf"model\.layers\.[{''.join(map(str, resolved))}]\.", key)}
    outside = {key for key in before if not key.startswith("model.layers.")}
    assert moved == (in_matched | outside) - set(alone)
    said = "1 weight without a partner in the other model, which equation 2 leaves as it is: the teacher's"
    assert caplog.messages == [f"{said} {key}" for key in alone]


def test_esms_head_on_all_layers_attention_grows_with_depth_and_stays(caplog):
    teacher, student = make(esm(4)), make(esm(2), seed=1)
    before = weights(teacher)
    with caplog.at_level(logging.INFO, logger="reptile_distil"):
        reptile_step(teacher, student, "skip")
    assert "esm.contact_head.regression.weight" not in changed(before, teacher)
    assert caplog.messages == [
        "2 weights without a partner in the other model, which equation 2 leaves as they are: "
        "the teacher's esm.contact_head.regression.weight, the student's esm.contact_head.regression.weight"
    ]


def test_a_student_parameter_without_a_partner_is_counted_too(caplog):
    with caplog.at_level(logging.INFO, logger="reptile_distil"):
        match_models(make(modernbert(4)), make(modernbert(2)), [1, 0])
    assert caplog.messages == [
        "2 weights without a partner in the other model, which equation 2 leaves as they are: "
        "the teacher's model.layers.1.attn_norm.weight, the student's model.layers.1.attn_norm.weight"
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hidden_size": 32}, "Reptile needs teacher and student of equal width, vocabulary and classes"),
        ({"num_labels": 2}, "^the teacher has 3 classes and the student 2: every method needs two models of the same"),
    ],
)
def test_other_shapes_are_refused_however_the_layers_differ(options, said, monkeypatch):
    teacher = make(modernbert(4))
    monkeypatch.setattr(f"{__name__}.COMMON", COMMON | options)
    with pytest.raises(LayerMapError, match=said):
        pair_parameters(teacher, make(modernbert(2)), ((1,), (3,)))


@pytest.mark.parametrize("kind", ["XLM", "Flaubert"])
def test_layers_whose_parts_lie_in_several_lists_are_refused_with_the_remedy(kind):
    config = getattr(transformers, f"{kind}Config")(
        emb_dim=16, n_layers=2, n_heads=2, vocab_size=30, max_position_embeddings=32
    )
    message = (
        r"the parts of its layers lie in \d lists \(transformer\.attentions, transformer\.\w+, \.\.\.\).*method: kd"
    )
    with pytest.raises(LayerMapError, match=message):
        start_from_teacher_layers(make(config), (1,))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_list_of_the_same_length_elsewhere_is_not_taken_for_the_layers(layer):
    """CANINE has encoders of one layer before and behind the one whose layers are counted."""
    teacher = make(CONFIGS["CANINE"](2))
    of_teacher = weights(teacher)
    for name, weight in weights(start_from_teacher_layers(teacher, (layer,))).items():
        source = name.replace("canine.encoder.layer.0.", f"canine.encoder.layer.{layer}.")
        assert torch.equal(weight, of_teacher[source]), name
