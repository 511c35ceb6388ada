"""Which layers are matched, and which parameters: against tables written out by hand."""

import pytest
import torch

from reptile_distil.errors import LayerMapError
from reptile_distil.models.layer_map import encoder_layers, pair_parameters, resolve_layer_map
from tests.helpers.models import bert, classifier

pytestmark = pytest.mark.smoke

FOUR_TO_TWO = {
    "skip": [
        ("bert.encoder.layer.1.", "bert.encoder.layer.0."),
        ("bert.encoder.layer.3.", "bert.encoder.layer.1."),
    ],
    "both": [
        ("bert.encoder.layer.0.", "bert.encoder.layer.0."),
        ("bert.encoder.layer.1.", "bert.encoder.layer.0."),
        ("bert.encoder.layer.2.", "bert.encoder.layer.1."),
        ("bert.encoder.layer.3.", "bert.encoder.layer.1."),
    ],
}
IN_A_LAYER = (
    "attention.self.query.weight",
    "attention.self.query.bias",
    "attention.self.key.weight",
    "attention.self.key.bias",
    "attention.self.value.weight",
    "attention.self.value.bias",
    "attention.output.dense.weight",
    "attention.output.dense.bias",
    "attention.output.LayerNorm.weight",
    "attention.output.LayerNorm.bias",
    "intermediate.dense.weight",
    "intermediate.dense.bias",
    "output.dense.weight",
    "output.dense.bias",
    "output.LayerNorm.weight",
    "output.LayerNorm.bias",
)
OUTSIDE_THE_LAYERS = (
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.position_embeddings.weight",
    "bert.embeddings.token_type_embeddings.weight",
    "bert.embeddings.LayerNorm.weight",
    "bert.embeddings.LayerNorm.bias",
    "bert.pooler.dense.weight",
    "bert.pooler.dense.bias",
    "classifier.weight",
    "classifier.bias",
)


def resolve(layer_map, num_teacher_layers, num_student_layers):
    return resolve_layer_map(layer_map, num_teacher_layers=num_teacher_layers, num_student_layers=num_student_layers)


@pytest.mark.parametrize(
    ("layer_map", "teacher_depth", "student_depth", "expected"),
    [
        ("first", 12, 6, ((0,), (1,), (2,), (3,), (4,), (5,))),
        ("last", 12, 6, ((6,), (7,), (8,), (9,), (10,), (11,))),
        ("skip", 12, 6, ((1,), (3,), (5,), (7,), (9,), (11,))),
        ("both", 12, 6, ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11))),
        ("first", 6, 3, ((0,), (1,), (2,))),
        ("last", 6, 3, ((3,), (4,), (5,))),
        ("skip", 6, 3, ((1,), (3,), (5,))),
        ("both", 6, 3, ((0, 1), (2, 3), (4, 5))),
        ("first", 4, 2, ((0,), (1,))),
        ("last", 4, 2, ((2,), (3,))),
        ("skip", 4, 2, ((1,), (3,))),
        ("both", 4, 2, ((0, 1), (2, 3))),
        ("first", 12, 4, ((0,), (1,), (2,), (3,))),
        ("last", 12, 4, ((8,), (9,), (10,), (11,))),
        ("skip", 12, 4, ((2,), (5,), (8,), (11,))),
        ("both", 12, 4, ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11))),
        ("first", 12, 5, ((0,), (1,), (2,), (3,), (4,))),
        ("last", 12, 5, ((7,), (8,), (9,), (10,), (11,))),
    ],
)
def test_the_named_maps_match_these_layers(layer_map, teacher_depth, student_depth, expected):
    assert resolve(layer_map, teacher_depth, student_depth) == expected


@pytest.mark.parametrize("entry", [0.5, "1", True, None, [0.5]])
def test_an_entry_that_is_no_number_is_refused(entry):
    with pytest.raises(LayerMapError, match=r"is no layer number$"):
        resolve([entry], 4, 1)


@pytest.mark.parametrize("layer_map", [3, None])
def test_a_map_that_is_neither_name_nor_list_is_refused(layer_map):
    with pytest.raises(LayerMapError, match=rf"layer map {layer_map}: expected a name, or a list with one entry"):
        resolve(layer_map, 4, 1)


def test_a_student_without_layers_is_refused():
    with pytest.raises(LayerMapError, match=r"^a student needs at least one layer$"):
        resolve("first", 4, 0)


@pytest.mark.parametrize("layer_map", ["first", "last", "skip", "both"])
def test_equal_depths_match_one_to_one(layer_map):
    assert resolve(layer_map, 3, 3) == ((0,), (1,), (2,))


@pytest.mark.parametrize(
    ("layer_map", "expected"),
    [
        ([0, 3], ((0,), (3,))),
        ([3, 0], ((3,), (0,))),
        ([[0, 1], 3], ((0, 1), (3,))),
        (((2,), (0, 1, 3)), ((2,), (0, 1, 3))),
    ],
)
def test_a_list_is_taken_as_it_stands(layer_map, expected):
    assert resolve(layer_map, 4, 2) == expected


@pytest.mark.parametrize(
    ("layer_map", "teacher_depth", "student_depth", "message"),
    [
        ("first", 2, 4, r"'first': 2 teacher layers and 4 student layers, but the student may not be deeper"),
        ("last", 2, 4, "'last': .*may not be deeper"),
        ("skip", 2, 4, "'skip': .*may not be deeper"),
        ("both", 2, 4, "'both': .*may not be deeper"),
        ("skip", 12, 5, "'skip': 12 teacher layers .* 12 is no multiple of 5; use first, last, or a list"),
        ("both", 4, 3, "'both': .* 4 is no multiple of 3; use first, last, or a list"),
        ("middle", 4, 2, "'middle': expected first, last, skip, both, or a list with one entry per student layer"),
        ([0, 4], 4, 2, r"\[0, 4\]: student layer 1 is matched with teacher layer 4, .* layers are 0 to 3"),
        ([-1, 2], 4, 2, r"student layer 0 is matched with teacher layer -1, .* layers are 0 to 3"),
        ([1, 1], 4, 2, r"\[1, 1\]: teacher layer 1 is given twice"),
        ([[0, 1], [1, 2]], 4, 2, "teacher layer 1 is given twice"),
        ([[2, 2], 3], 4, 2, "teacher layer 2 is given twice"),
        ([0], 4, 2, r"\[0\]: 1 entries, but 2 student layers"),
        ([0, 1, 2], 4, 2, r"\[0, 1, 2\]: 3 entries, but 2 student layers"),
    ],
)
def test_a_map_that_fits_no_two_models_is_refused(layer_map, teacher_depth, student_depth, message):
    with pytest.raises(LayerMapError, match=message):
        resolve(layer_map, teacher_depth, student_depth)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "bert.encoder.layer"),
        ("roberta", "roberta.encoder.layer"),
        ("distilbert", "distilbert.transformer.layer"),
        ("electra", "electra.encoder.layer"),
        ("mpnet", "mpnet.encoder.layer"),
    ],
)
def test_the_encoder_layers_are_found_in(kind, name):
    model = classifier(kind, 3)
    found, layers = encoder_layers(model)
    assert found == name
    assert layers is model.get_submodule(name)
    assert len(layers) == 3


def test_albert_is_refused_because_its_layers_share_one_set_of_weights():
    with pytest.raises(LayerMapError, match=r"AlbertFor.*: no list of 4 encoder layers .*share one layer's weights"):
        encoder_layers(classifier("albert", 4))


@pytest.mark.parametrize("layer_map", ["skip", "both"])
def test_a_4_to_2_bert_is_paired_by_these_names(layer_map):
    pairs = pair_parameters(bert(4), bert(2), resolve(layer_map, 4, 2))
    expected = [(name, name) for name in OUTSIDE_THE_LAYERS]
    expected += [(teacher + name, student + name) for teacher, student in FOUR_TO_TWO[layer_map] for name in IN_A_LAYER]
    assert sorted((pair.teacher_name, pair.student_name) for pair in pairs) == sorted(expected)


def test_the_pairs_hold_the_models_own_parameters_under_their_names():
    teacher, student = bert(4), bert(2)
    for pair in pair_parameters(teacher, student, ((1,), (3,))):
        assert pair.teacher is teacher.get_parameter(pair.teacher_name)
        assert pair.student is student.get_parameter(pair.student_name)


def test_the_pairs_stand_in_the_students_order():
    student = bert(2)
    names = [pair.student_name for pair in pair_parameters(bert(4), student, ((0, 1), (2, 3)))]
    assert list(dict.fromkeys(names)) == [name for name, _ in student.named_parameters()]


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "mpnet"])
def test_every_student_parameter_of_the_other_architectures_has_its_partner(kind):
    teacher, student = classifier(kind, 4), classifier(kind, 2)
    pairs = pair_parameters(teacher, student, ((1,), (3,)))
    assert [pair.student_name for pair in pairs] == [name for name, _ in student.named_parameters()]
    for pair in pairs:
        if ".layer." in pair.student_name:
            before, after = pair.student_name.split(".layer.")
            moved = {"0": "1", "1": "3"}[after[0]] + after[1:]
            assert pair.teacher_name == f"{before}.layer.{moved}"
        else:
            assert pair.teacher_name == pair.student_name


def test_a_student_layer_may_be_matched_with_none():
    pairs = pair_parameters(bert(4), bert(2), ((), (3,)))
    layers = {pair.student_name.split(".layer.")[1][0] for pair in pairs if ".layer." in pair.student_name}
    assert layers == {"1"}


@pytest.mark.parametrize(("teacher", "student"), [("bert", "distilbert"), ("distilbert", "bert"), ("bert", "roberta")])
def test_two_architectures_are_refused_with_both_names_and_the_remedy(teacher, student):
    class_names = {
        "bert": "BertForSequenceClassification",
        "distilbert": "DistilBertForSequenceClassification",
        "roberta": "RobertaForSequenceClassification",
    }
    message = f"of {class_names[student]} has no partner .* in {class_names[teacher]}: .* use method: kd"
    with pytest.raises(LayerMapError, match=message):
        pair_parameters(classifier(teacher, 4), classifier(student, 2), ((1,), (3,)))


def test_a_teacher_parameter_outside_the_layers_without_a_partner_is_refused():
    teacher = bert(4)
    teacher.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(LayerMapError, match="'scale' of BertForSequenceClassification has no partner 'scale'"):
        pair_parameters(teacher, bert(2), ((1,), (3,)))


def test_other_widths_are_refused_with_names_shapes_and_remedy():
    message = r"'bert.embeddings.word_embeddings.weight' has shape \(30, 16\), student .* \(30, 8\): .*method: kd"
    with pytest.raises(LayerMapError, match=message):
        pair_parameters(bert(4, width=16), bert(2, width=8), ((1,), (3,)))
