"""Relations, learned projections and attention maps, against slow literal versions and within every method."""

import copy

import pytest
import torch
import transformers

from reptile_distil.errors import ModelError
from reptile_distil.losses.attention_maps import AttentionLoss, check_maps
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.losses.hidden_states import HiddenLoss, ProjectedHiddenLoss
from reptile_distil.losses.relations import RelationLoss, similarities
from reptile_distil.methods.checkpoints import CheckpointDistiller
from reptile_distil.methods.cotrain import CoTrainer
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.lgtm import InfluenceDistiller
from reptile_distil.methods.metadistil import MetaDistiller
from reptile_distil.methods.prokt import ProKTDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.methods.reptile_variants import Ablation
from reptile_distil.models.checks import check_projections
from reptile_distil.models.classifier import Classifier, Student, Teacher
from tests.helpers.models import batch, bert, changed, classifier, weights
from tests.oracles.hidden_terms import literal_kd_step, literal_reptile_step, literal_term

EXACT = {"rtol": 0, "atol": 1e-9}
WEIGHT = 3.0
LAYER_MAP = ((1,), (2, 3))
MOVED = ((1,), (3,))


def shaped(num_layers, width, heads, *, seed, dropout=0.0):
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=16,
        num_labels=3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
    )
    return transformers.BertForSequenceClassification(config).double()


def pair(widths=(24, 16), heads=(3, 2), **options):
    """A teacher of four layers, and a student of two."""
    return shaped(4, widths[0], heads[0], seed=1, **options), shaped(2, widths[1], heads[1], seed=2, **options)


def term_of(kind, teacher, student, weight=WEIGHT):
    """The term, and the literal version's settings."""
    widths = {"teacher_width": teacher.config.hidden_size, "student_width": student.config.hidden_size}
    heads = teacher.config.num_attention_heads, student.config.num_attention_heads
    mapped = {"layer_map": LAYER_MAP}
    if kind == "relations":
        settings = {"heads": 4, "teacher_layer": 2, "student_layer": 1}
        return RelationLoss(weight, 4, 2, 1), {"term": "relations", **settings}
    if kind in ("scores", "probabilities"):
        return AttentionLoss(weight, LAYER_MAP, kind, *heads), {"term": "attention", "of": kind, **mapped}
    if kind == "hidden":
        return HiddenLoss(weight, LAYER_MAP, embeddings=True), {"term": "hidden", "embeddings": True, **mapped}
    torch.manual_seed(7)
    embeddings = kind == "projected and embeddings"
    term = ProjectedHiddenLoss(weight, LAYER_MAP, embeddings=embeddings, **widths).double()
    learned = {name.removesuffix(".weight"): copy.deepcopy(theta) for name, theta in term.named_parameters()}
    return term, {"term": "hidden", "embeddings": embeddings, **mapped, **learned}


ANY_WIDTH = ("relations", "scores", "probabilities", "projected", "projected and embeddings")


def learned_of(settings):
    return [settings[name] for name in ("w_hidden", "w_embeddings") if name in settings]


def compared(term, teacher, student, given):
    outputs = [Classifier(model).eval().outputs(given, needs=term.needs) for model in (student, teacher)]
    return term(*outputs, given["attention_mask"])


@pytest.mark.smoke
@pytest.mark.parametrize("heads", [(3, 2), (2, 2)])
@pytest.mark.parametrize("kind", ANY_WIDTH)
def test_a_term_equals_its_literal_version_for_two_widths_and_numbers_of_heads(kind, heads):
    teacher, student = pair(heads=heads)
    term, settings = term_of(kind, teacher, student)
    for seed in range(2):
        given = batch(3, 4, seed=seed)
        expected = literal_term(student.eval(), teacher.eval(), given, settings)
        torch.testing.assert_close(compared(term, teacher, student, given), expected, **EXACT)


def test_products_of_queries_and_keys_in_half_precision_are_taken_in_float32():
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 1, 5, 8).bfloat16()
    taken = similarities(queries, keys, num_heads=2)
    assert taken.dtype == torch.float32
    for head, part in enumerate((slice(0, 4), slice(4, 8))):
        exact = queries[0, :, part].double() @ keys[0, :, part].double().T / 2
        torch.testing.assert_close(taken[0, head].double(), exact, rtol=1e-5, atol=1e-6)


def test_hidden_states_of_equal_width_with_the_embeddings():
    teacher, student = pair(widths=(16, 16), heads=(4, 2))
    term, settings = term_of("hidden", teacher, student)
    given = batch(3, 4)
    expected = literal_term(student.eval(), teacher.eval(), given, settings)
    torch.testing.assert_close(compared(term, teacher, student, given), expected, **EXACT)


@pytest.mark.parametrize("kind", [*ANY_WIDTH, "hidden"])
def test_padding_changes_nothing(kind):
    """The same rows with three more columns of padding, on the right and on the left."""
    teacher, student = pair(widths=(16, 16), heads=(4, 2))
    term, _ = term_of(kind, teacher, student)
    given = batch(3, 4)
    positions = {"position_ids": torch.arange(4).expand(3, -1)}
    wide = {
        side: {
            name: torch.nn.functional.pad(tensor, (3, 0) if side == "left" else (0, 3), value=9 * (name == "input_ids"))
            for name, tensor in {**given, **positions}.items()
            if name != "labels"
        }
        for side in ("left", "right")
    }
    expected = compared(term, teacher, student, {**given, **positions})
    for side in ("left", "right"):
        torch.testing.assert_close(compared(term, teacher, student, wide[side]), expected, **EXACT)


@pytest.mark.parametrize("kind", ANY_WIDTH)
def test_the_gradient_is_that_of_finite_differences(kind):
    teacher, student = pair()
    term, _ = term_of(kind, teacher, student)
    given, step = batch(3, 4), 1e-6
    layer = student.bert.encoder.layer[0].attention.self.key
    theta = layer.weight
    compared(term, teacher, student, given).backward()
    with torch.no_grad():
        for place in ((0, 0), (5, 11), (15, 3)):
            values = []
            for move in (step, -2 * step):
                theta[place] += move
                values.append(compared(term, teacher, student, given).item())
            theta[place] += step
            assert theta.grad[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-6)
    assert theta.grad.abs().max() > 1e-4


def loss_with(term):
    return DistillationLoss(alpha=0.25, temperature=2.0, hidden_terms=[term]).double()


SETTINGS = {"alpha": 0.25, "temperature": 2.0, "weight": WEIGHT, "max_grad_norm": 0.5}


def both(kind, **options):
    """Two copies of a teacher, a student and a term; of the second the literal settings."""
    teacher, student = pair(**options)
    term, settings = term_of(kind, teacher, student)
    learned = learned_of(settings)
    slow = copy.deepcopy(teacher), copy.deepcopy(student), {**SETTINGS, **settings, "learned": learned}
    return teacher, student, loss_with(term), slow


def optimizer_of(student, learned):
    return torch.optim.AdamW([*student.parameters(), *learned], lr=1e-2, eps=1e-4)


def assert_same(models, expected):
    for model, literal in zip(models, expected, strict=True):
        for a, b in zip(model.parameters(), literal.parameters(), strict=True):
            torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize(
    ("kind", "micro_batch_size"),
    [
        ("relations", None),
        ("scores", None),
        ("projected and embeddings", 2),
        *(pytest.param(kind, None, marks=pytest.mark.slow) for kind in ("probabilities", "projected")),
        pytest.param("relations", 2, marks=pytest.mark.slow),
    ],
)
def test_steps_of_kd_equal_the_literal_ones(kind, micro_batch_size):
    teacher, student, loss, (slow_teacher, slow_student, settings) = both(kind)
    optimizer = optimizer_of(student, loss.parameters())
    options = {"max_grad_norm": 0.5, "micro_batch_size": micro_batch_size}
    method = KnowledgeDistiller(teacher, student, loss=loss, student_optimizer=optimizer, **options)
    slow_optimizer = optimizer_of(slow_student, settings["learned"])
    for seed in range(2):
        method.step(batch(3, 4, seed=seed))
        literal_kd_step(batch(3, 4, seed=seed), slow_teacher, slow_student, settings, slow_optimizer)
    assert_same((teacher, student), (slow_teacher, slow_student))
    for theta, expected in zip(loss.parameters(), settings["learned"], strict=True):
        torch.testing.assert_close(theta, expected, **EXACT)


@pytest.mark.parametrize("kind", ["relations", "projected and embeddings"])
def test_steps_from_a_teachers_checkpoints_equal_literal_ones_of_kd_from_each(kind):
    teacher, student, loss, (_, slow_student, settings) = both(kind)
    epochs = [shaped(4, 24, 3, seed=seed) for seed in (11, 12)]
    method = CheckpointDistiller(
        teacher,
        student,
        epochs=[epoch.state_dict for epoch in epochs],
        num_steps=4,
        loss=loss,
        student_optimizer=optimizer_of(student, loss.parameters()),
        max_grad_norm=0.5,
    )
    slow_optimizer = optimizer_of(slow_student, settings["learned"])
    for seed in range(4):
        method.step(batch(3, 4, seed=seed))
        literal_kd_step(batch(3, 4, seed=seed), epochs[seed // 2], slow_student, settings, slow_optimizer)
    assert_same((teacher, student), (epochs[1], slow_student))
    for theta, expected in zip(loss.parameters(), settings["learned"], strict=True):
        torch.testing.assert_close(theta, expected, **EXACT)


WAYS = {
    "teacher first": {},
    "new masks": {"share_forward": False},
    "student first": {"order": "student_first"},
    "two inner steps": {"share_forward": False, "inner_steps": 2},
}


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("projected and embeddings", "teacher first"),
        ("projected and embeddings", "two inner steps"),
        ("relations", "teacher first"),
        ("scores", "student first"),
        *(pytest.param("hidden", way, marks=pytest.mark.slow) for way in WAYS),
        *(pytest.param("projected and embeddings", w, marks=pytest.mark.slow) for w in ("new masks", "student first")),
    ],
)
def test_steps_of_reptile_equal_the_literal_ones(kind, way):
    """The teacher has another number of heads. A projection is no part of the student: equation 1 leaves it alone."""
    teacher, student, loss, (slow_teacher, slow_student, settings) = both(kind, widths=(16, 16), heads=(4, 2))
    options = {"order": "teacher_first", "share_forward": True, **WAYS[way]}
    inner_steps = options.pop("inner_steps", 1)
    inner = {} if options["order"] == "student_first" else {"inner_optimizer": "sgd", "inner_lr": 0.1}
    method = ReptileDistiller(
        teacher,
        student,
        loss=loss,
        layer_map=[1, 3],
        update="interpolate",
        student_optimizer=optimizer_of(student, loss.parameters()),
        teacher_optimizer=torch.optim.SGD(teacher.parameters(), lr=0.05),
        max_grad_norm=0.5,
        ablation=Ablation(inner_steps=inner_steps),
        **inner,
        **options,
    )
    settings |= {"order": options["order"], "moved": MOVED, "mu": 0.05, "inner_lr": 0.1, "inner_steps": inner_steps}
    slow_optimizer = optimizer_of(slow_student, settings["learned"])
    for seed in range(2):
        given = batch(3, 4, seed=seed)
        method.step(given, *([[given] * inner_steps] if inner_steps > 1 else []))
        literal_reptile_step(given, slow_teacher, slow_student, settings, slow_optimizer)
    assert_same((teacher, student), (slow_teacher, slow_student))
    for theta, expected in zip(loss.parameters(), settings["learned"], strict=True):
        torch.testing.assert_close(theta, expected, **EXACT)


def other_method(name, teacher, student, loss, student_optimizer):
    teacher_optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-3)
    shared = {"loss": loss, "student_optimizer": student_optimizer, "teacher_optimizer": teacher_optimizer}
    if name == "metadistil":
        return MetaDistiller(teacher, student, assumed_lr=0.1, **shared)
    if name == "lgtm":
        return InfluenceDistiller(teacher, student, assumed_lr=0.1, **shared)
    if name == "prokt":
        return ProKTDistiller(teacher, student, **shared)
    return CoTrainer(teacher, student, order="teacher_first" if name == "cotrain first" else "together", **shared)


@pytest.mark.parametrize("name", ["metadistil", "lgtm", "prokt", "cotrain", "cotrain first"])
@pytest.mark.parametrize("kind", ["relations", "probabilities", "projected and embeddings"])
def test_the_other_methods_take_the_terms_too(kind, name):
    teacher, student = pair(dropout=0.1)
    term, _ = term_of(kind, teacher, student)
    loss = loss_with(term)
    before = weights(loss)
    method = other_method(name, teacher, student, loss, optimizer_of(student, loss.parameters()))
    quiz = [batch(3, 4, seed=3)] if name in ("metadistil", "lgtm") else []
    logs = method.step(batch(3, 4), *quiz)
    assert logs[f"{term.name}_loss"] > 0
    assert changed(before, loss) == set(before)
    for model in (teacher, student):
        assert all(theta.isfinite().all() for theta in model.parameters())


def test_the_teacher_of_metadistil_learns_through_relations_alone():
    teacher, student = pair()
    term, _ = term_of("relations", teacher, student)
    loss = DistillationLoss(alpha=0.0, hidden_terms=[term])
    method = other_method("metadistil", teacher, student, loss, optimizer_of(student, ()))
    assert method.step(batch(3, 4), batch(3, 4, seed=3))["teacher_grad_norm"] > 0


def test_an_optimizer_without_the_projection_is_refused():
    teacher, student = pair()
    loss = loss_with(term_of("projected", teacher, student)[0])
    with pytest.raises(ValueError, match="does not hold 1 of the 1 loss parameters"):
        KnowledgeDistiller(teacher, student, loss=loss, student_optimizer=optimizer_of(student, ()))


@pytest.mark.parametrize("kind", ["albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"])
def test_the_maps_are_those_that_eager_attention_gives(kind):
    model = classifier(kind, 3).eval()
    check_maps(kind, model)
    given = batch()
    projections = Classifier(model).outputs(given, needs=["projections"]).projections
    assert len(projections) == 3
    model.set_attn_implementation("eager")
    maps = Classifier(model).outputs(given, needs=["attentions"]).attentions
    term = AttentionLoss(1.0, ((0,),), "probabilities", 2, 2)
    outputs = Classifier(model).outputs(given, needs=["projections"])
    real = given["attention_mask"].bool()
    for layer, expected in enumerate(maps):
        found = term._maps(outputs, layer, "student", given["attention_mask"])
        torch.testing.assert_close(found.transpose(1, 2)[real], expected.transpose(1, 2)[real])


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "mpnet", "albert"])
def test_a_model_is_asked_for_no_more_than_a_loss_needs(kind):
    model = classifier(kind, 2)
    calls = []
    hooks = lambda: sum(len(m._forward_hooks) for m in model.modules() if isinstance(m, torch.nn.Linear))  # noqa: E731
    model.register_forward_pre_hook(lambda _, args, inputs: calls.append((set(inputs), hooks())), with_kwargs=True)
    for needs, name in (((), None), (("hidden_states",), "output_hidden_states"), (("projections",), None)):
        outputs = Student(model).outputs(batch(), needs=needs)
        asked, num_hooks = calls.pop()
        assert {word for word in asked if word.startswith("output_")} == ({name} if name else set())
        assert (num_hooks > 0) == ("projections" in needs)
        assert {field for field in outputs._fields[1:] if getattr(outputs, field)} == set(needs)
        assert hooks() == 0


def test_attentions_under_fused_attention_are_an_error_not_a_silent_zero():
    with pytest.raises(ModelError, match=r"gives no attentions.*set compute\.attention=eager"):
        Teacher(bert(2)).targets(batch(), needs=["attentions"])


def other(config, **options):
    small = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
    name = config.__name__.removesuffix("Config") + "ForSequenceClassification"
    settings = {**small, "intermediate_size": 32, "pad_token_id": 0, **options}
    return getattr(transformers, name)(config(**settings))


REFUSED = {
    "GPT-2": (transformers.GPT2Config, {"bos_token_id": 1, "eos_token_id": 1}, "no linear layers called"),
    "ModernBERT": (
        transformers.ModernBertConfig,
        {"bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1},
        "no linear layers called",
    ),
    "DeBERTa": (transformers.DebertaV2Config, {}, "no linear layers called"),
    "Llama": (transformers.LlamaConfig, {"num_key_value_heads": 2}, "it is a decoder"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_do_not_show_queries_keys_and_values_are_refused(kind):
    config, options, reason = REFUSED[kind]
    with pytest.raises(ModelError, match=f"gives no queries, keys and values .*{reason}"):
        check_projections(kind, other(config, **options))


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "mpnet", "albert"])
def test_models_that_do_are_not(kind):
    check_projections(kind, classifier(kind, 2))


def test_a_compiled_model_is_refused():
    model = bert(2)
    model._compiled_call_impl = model.forward  # as model.compile() leaves it
    with pytest.raises(ModelError, match=r"compute\.compile=false"):
        Classifier(model).outputs(batch(), needs=["projections"])


def test_attention_that_is_more_than_queries_and_keys_is_refused():
    with pytest.raises(ModelError, match=r"loss\.attention computes the maps of .* and this one is mpnet"):
        check_maps("mpnet", classifier("mpnet", 2))


def test_heads_that_do_not_divide_the_width_are_refused():
    teacher, student = pair()
    with pytest.raises(ModelError, match="width 16 cannot be cut into 3 equal heads"):
        compared(RelationLoss(1.0, 3, 2, 1), teacher, student, batch(3, 4))
    with pytest.raises(ModelError, match="the student gave queries, keys and values of 2 layers"):
        compared(RelationLoss(1.0, 4, 2, 5), teacher, student, batch(3, 4))
