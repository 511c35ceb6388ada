"""Packed forward passes against padded ones, and against each row alone."""

import copy
import itertools

import pytest
import torch

from reptile_distil import DistillationLoss, ReptileDistiller
from reptile_distil.errors import ModelError
from reptile_distil.models import packing
from reptile_distil.models.classifier import Classifier, Student, Teacher
from reptile_distil.models.packing import Layout, packed_logits
from tests.helpers.models import bert, classifier

KINDS = ("bert", "roberta", "electra")
LENGTHS = (7, 3, 9, 1, 9, 2)


def ragged(kind="bert", lengths=LENGTHS, *, segments=True, seed=0):
    """A batch with rows of these lengths, padded with id 1 on the right."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(2, 30, mask.shape, generator=generator) * mask + (1 - mask)
    batch = {"input_ids": ids, "attention_mask": mask}
    if segments and kind != "roberta":  # which has one segment
        batch["token_type_ids"] = torch.randint(0, 2, mask.shape, generator=generator) * mask
    return batch


def pair(kind, **options):
    """The same model twice, in eval mode: padded and packed."""
    model = classifier(kind, **options).eval()
    return Classifier(model).eval(), Classifier(copy.deepcopy(model), packed=True).eval()


def gradients(model, batch):
    model.zero_grad()
    model(batch).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("lengths", [LENGTHS, (5, 5, 5), (4,), (1, 1)])
def test_packed_logits_equal_padded_ones_within_1e_5(kind, segments, lengths):
    padded, packed = pair(kind)
    batch = ragged(kind, lengths, segments=segments)
    torch.testing.assert_close(packed(batch), padded(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_gradients_equal_padded_ones_within_1e_5(kind):
    padded, packed = pair(kind)
    expected = gradients(padded, ragged(kind))
    found = gradients(packed, ragged(kind))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_see_the_others(kind):
    padded, packed = pair(kind)
    batch = ragged(kind)
    alone = [
        padded({name: tensor[row : row + 1, :length] for name, tensor in batch.items()})
        for row, length in enumerate(LENGTHS)
    ]
    torch.testing.assert_close(packed(batch), torch.cat(alone), rtol=0, atol=1e-5)


def test_padding_is_not_computed():
    _, packed = pair("bert")
    shapes = []
    for module in packed.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
            module.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[:-1])))
    packed(ragged())
    real = sum(LENGTHS)
    # Outside the layers: the pooler on the packed row's first token, then on the first tokens; the classifier.
    assert set(shapes) == {(1, real), (1,), (len(LENGTHS),)}
    assert shapes.count((1, real)) == 1 + 2 * 8  # embeddings; 2 layers of 6 linear layers and 2 norms


def test_a_padded_pass_of_the_same_model_stays_as_it_was():
    padded, packed = pair("bert")
    batch = ragged()
    assert torch.equal(packed.model(**batch).logits, padded.model(**batch).logits)


def test_a_batch_without_a_mask_has_no_padding():
    padded, packed = pair("bert")
    batch = {"input_ids": torch.randint(2, 30, (3, 5))}
    torch.testing.assert_close(packed(batch), padded(batch), rtol=0, atol=1e-5)


def test_under_autocast_packed_and_padded_differ_by_rounding_only():
    model = classifier("bert").eval()
    exact = Classifier(copy.deepcopy(model)).eval()(ragged())
    half = Classifier(model, autocast_dtype=torch.bfloat16, packed=True).eval()(ragged())
    torch.testing.assert_close(half.float(), exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_dropout_is_that_of_the_model(p):
    packed = Classifier(bert(2, dropout=p), packed=True).train()
    assert torch.equal(packed(ragged()), packed(ragged())) == (p == 0.0)
    packed.eval()
    assert torch.equal(packed(ragged()), packed(ragged()))


def test_attention_probabilities_are_dropped_too():
    model = bert(1)
    model.config.attention_probs_dropout_prob = 0.5
    for module in model.modules():
        if hasattr(module, "num_attention_heads"):
            module.dropout.p = 0.5
    packed = Classifier(model, packed=True).train()
    assert not torch.equal(packed(ragged()), packed(ragged()))


@pytest.mark.parametrize("kind", ["distilbert", "mpnet", "albert"])
def test_another_architecture_is_refused(kind):
    with pytest.raises(ModelError, match=r"cannot be packed, only Bert, Roberta, XLMRoberta, Electra classifiers can"):
        Classifier(classifier(kind), packed=True)


def test_padding_on_the_left_is_refused():
    _, packed = pair("bert")
    batch = {name: tensor.flip(1) for name, tensor in ragged().items()}
    with pytest.raises(ModelError, match="a batch with padding on the left cannot be packed"):
        packed(batch)


def test_a_saved_model_knows_nothing_of_packing(tmp_path):
    _, packed = pair("bert")
    packed.model.save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()


def test_a_layout_says_where_rows_start_and_takes_padding_out_and_puts_zeros_in():
    layout = Layout.of(torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]))
    assert layout.starts.tolist() == [0, 2, 3]
    batch = torch.tensor([[1, 2, 8], [3, 8, 8], [4, 5, 6]])
    assert layout.pack(batch).tolist() == [1, 2, 3, 4, 5, 6]
    assert layout.pad(layout.pack(batch)).tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]


def distiller(packed):
    teacher, student = bert(4, seed=1), bert(2, seed=2)
    return ReptileDistiller(
        Teacher(teacher, packed=packed),
        Student(student, packed=packed),
        loss=DistillationLoss(alpha=0.5, temperature=5.0),
        update="interpolate",
        inner_optimizer="sgd",
        inner_lr=0.1,
        student_optimizer=torch.optim.SGD(student.parameters(), lr=0.1),
        teacher_optimizer=torch.optim.SGD(teacher.parameters(), lr=0.1),
        micro_batch_size=4,
    )


def test_reptile_takes_the_same_steps_packed_and_padded():
    padded, packed = distiller(False), distiller(True)
    for seed in range(3):
        batch = {**ragged(seed=seed), "labels": torch.tensor([0, 1, 2, 0, 1, 2])}
        padded.step(batch)
        packed.step(batch)
    for of_padded, of_packed in ((padded.teacher, packed.teacher), (padded.student, packed.student)):
        for (name, expected), found in zip(of_padded.named_parameters(), of_packed.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=name)


def test_a_packed_classifier_stays_packed_as_a_student_or_a_teacher():
    _, packed = pair("bert")
    assert Student.wrap(packed).packed
    assert Teacher.wrap(packed).packed


def test_packed_logits_of_a_bare_model_need_no_wrapper():
    _, packed = pair("bert")
    assert packed_logits(packed.model, ragged()).shape == (6, 3)


def attend_row_by_row(query, key, value, starts, starts_of_keys, longest, longest_key):
    """What the kernel computes, literally: (T, H, D) each, attention within starts[i] to starts[i + 1]."""
    assert starts.dtype == starts_of_keys.dtype == torch.int32
    assert longest == longest_key >= int(starts.diff().max())
    rows = []
    for start, end in itertools.pairwise(starts):
        q, k, v = (part[start:end].transpose(0, 1) for part in (query, key, value))
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(dim=-1)
        rows.append((weights @ v).transpose(0, 1))
    return torch.cat(rows)


@pytest.fixture
def literal_kernel(monkeypatch):
    """Takes the way over the kernel on the CPU, with a literal one in its place; counts its calls."""
    calls = []

    def kernel(*arguments):
        calls.append(arguments)
        return attend_row_by_row(*arguments)

    monkeypatch.setattr(packing, "varlen_attn", kernel)
    monkeypatch.setattr(packing, "has_kernel", lambda query, dropout: True)
    return calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [LENGTHS, (5, 5, 5), (1, 1)])
def test_over_the_kernel_logits_and_gradients_equal_padded_ones_within_1e_5(literal_kernel, kind, lengths):
    padded, packed = pair(kind)
    batch = ragged(kind, lengths)
    torch.testing.assert_close(packed(batch), padded(batch), rtol=0, atol=1e-5)
    assert len(literal_kernel) == 2  # one for each layer
    expected, found = gradients(padded, batch), gradients(packed, batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


class Query:
    """As much of a query (1, H, T, D) as `has_kernel` looks at."""

    def __init__(self, *, is_cuda=True, dtype=torch.bfloat16, width=64):
        self.is_cuda, self.dtype, self.shape, self.device = is_cuda, dtype, (1, 12, 100, width), "cuda"


@pytest.mark.parametrize(
    ("query", "dropout", "capability", "expected"),
    [
        (Query(), 0.0, (8, 0), True),
        (Query(dtype=torch.float16, width=32), 0.0, (9, 0), True),
        (Query(), 0.1, (9, 0), False),
        (Query(), 0.0, (7, 5), False),
        (Query(dtype=torch.float32), 0.0, (9, 0), False),
        (Query(width=20), 0.0, (9, 0), False),
        (Query(width=264), 0.0, (9, 0), False),
        (Query(is_cuda=False), 0.0, (9, 0), False),
    ],
)
def test_the_kernel_is_taken_only_where_it_works(monkeypatch, query, dropout, capability, expected):
    monkeypatch.setattr(packing, "varlen_attn", attend_row_by_row)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert packing.has_kernel(query, dropout) == expected


def test_without_the_kernel_packing_works_as_before(monkeypatch):
    monkeypatch.setattr(packing, "varlen_attn", None)
    assert not packing.has_kernel(Query(), 0.0)


def test_another_scale_than_the_kernels_does_not_take_it(literal_kernel):
    padded, packed = pair("bert")
    for model in (padded, packed):
        for module in model.modules():
            if hasattr(module, "scaling"):
                module.scaling = 0.5
    torch.testing.assert_close(packed(ragged()), padded(ragged()), rtol=0, atol=1e-5)
    assert not literal_kernel


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_packed_equals_padded_in_half_precision(kind):
    """bfloat16 has 8 bits: logits of size 1 agree within a few hundredths."""
    model = classifier(kind).eval().to("cuda")
    padded = Classifier(copy.deepcopy(model), autocast_dtype=torch.bfloat16).eval()
    packed = Classifier(model, autocast_dtype=torch.bfloat16, packed=True).eval()
    batch = {name: tensor.to("cuda") for name, tensor in ragged(kind).items()}
    torch.testing.assert_close(packed(batch).float(), padded(batch).float(), rtol=0, atol=0.05)
    expected, found = gradients(padded, batch), gradients(packed, batch)
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        # A key's bias adds the same to all scores of a row, which a softmax does not see: its gradient is rounding.
        size = largest if name.endswith("key.bias") else gradient.norm()
        assert (found[name] - gradient).norm() <= 0.05 * size + 1e-3, name
