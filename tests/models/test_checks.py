"""What cannot be read is found before training, by letting the model read what its tokenizer gives."""

import pytest
import torch
import transformers

from reptile_distil.errors import ModelError
from reptile_distil.models.checks import (
    check_it_runs,
    check_rows,
    check_states,
    check_vocabulary,
    embedding_rows,
    embedding_table,
    end_rows,
    fit_padding,
    set_length,
)
from reptile_distil.models.toy import toy_tokenizer
from tests.helpers.architectures import CONFIGS
from tests.helpers.models import bert, classifier

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def tokenizer(**options):
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a the film was good".split()
    return transformers.BertTokenizer(vocab={word: index for index, word in enumerate(words)}, **options)


def model_of(kind, **options):
    """A tiny classifier with 16 rows in its position table, if it has one."""
    if kind in ("bert", "roberta", "distilbert", "electra", "mpnet", "albert"):
        return classifier(kind)
    common = {"vocab_size": 30, "num_labels": 3, "pad_token_id": 0}
    configs = {
        "camembert": lambda: transformers.CamembertConfig(**common, **SHAPE, max_position_embeddings=16),
        "xlm-roberta": lambda: transformers.XLMRobertaConfig(**common, **SHAPE, max_position_embeddings=16),
        "roberta-prelayernorm": lambda: transformers.RobertaPreLayerNormConfig(
            **common, **SHAPE, max_position_embeddings=16
        ),
        "longformer": lambda: transformers.LongformerConfig(
            **common, **SHAPE, max_position_embeddings=16, attention_window=4
        ),
        "xlnet": lambda: transformers.XLNetConfig(**common, d_model=16, n_layer=2, n_head=2, d_inner=32),
        "funnel": lambda: transformers.FunnelConfig(
            **common, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=32
        ),
        "bart": lambda: transformers.BartConfig(
            **common,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=16,
            eos_token_id=3,
        ),
    }
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(configs[kind]())


POSITIONS = [
    ("bert", 16),
    ("distilbert", 16),
    ("electra", 16),
    ("albert", 16),
    ("roberta", 14),
    ("mpnet", 14),
    ("camembert", 15),
    ("xlm-roberta", 15),
    ("roberta-prelayernorm", 15),
]


@pytest.mark.parametrize("is_pair", [False, True])
@pytest.mark.parametrize(("kind", "longest"), POSITIONS)
def test_exactly_the_lengths_that_the_model_can_read_are_allowed(kind, longest, is_pair):
    """16 rows in the position table; those of some architectures stand for padding."""
    model = model_of(kind).eval()
    check_rows("small", model, tokenizer(), is_pair=is_pair, max_length=longest)
    assert model(input_ids=torch.full((1, longest), 5)).logits.shape == (1, 3)
    message = f"^small: has {longest} positions, but data.max_length is {longest + 1} tokens; lower it$"
    with pytest.raises(ModelError, match=message):
        check_rows("small", model, tokenizer(), is_pair=is_pair, max_length=longest + 1)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 5))


@pytest.mark.parametrize("kind", ["xlnet", "funnel"])
def test_a_model_without_a_table_of_positions_may_read_any_length(kind):
    model = model_of(kind)
    check_it_runs("small", model)
    check_rows("small", model, tokenizer(), is_pair=True, max_length=64)


@pytest.mark.parametrize("kind", ["funnel", "bart", "xlnet", "longformer", "albert"])
def test_a_model_that_is_right_is_not_refused_for_a_short_text(kind):
    check_it_runs("small", model_of(kind))


@pytest.mark.parametrize("kind", ["Bert", "Electra", "Roberta", "XLMRoberta", "Albert"])
def test_segments_that_the_model_does_not_know_are_found_for_pairs_alone(kind):
    config = getattr(transformers, f"{kind}Config")(
        **SHAPE, vocab_size=30, max_position_embeddings=20, type_vocab_size=1, pad_token_id=0
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    check_rows("small", model, tokenizer(), is_pair=False, max_length=16)
    message = r"^small: the model fails on a pair of texts: its tokenizer tells the texts of a row apart by token_type"
    with pytest.raises(ModelError, match=message):
        check_rows("small", model, tokenizer(), is_pair=True, max_length=16)
    without_segments = tokenizer(model_input_names=["input_ids", "attention_mask"])
    check_rows("small", model, without_segments, is_pair=True, max_length=16)


def test_what_fails_on_a_text_for_another_reason_is_one_sentence():
    model = bert(2)
    model.bert.encoder.layer[1].output.dense = torch.nn.Linear(3, 3)
    for is_pair, what in ((False, "a text"), (True, "a pair of texts")):
        with pytest.raises(ModelError, match=rf"^small: the model fails on {what}: RuntimeError: [^\n]+$"):
            check_rows("small", model, tokenizer(), is_pair=is_pair, max_length=16)


def test_letting_a_model_read_leaves_its_mode_and_the_random_numbers_alone():
    model = bert(2, dropout=0.5).train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_rows("small", model, tokenizer(), is_pair=True, max_length=16)
    assert model.training
    assert torch.equal(torch.rand(3), expected)


def test_a_tokenizer_with_more_words_than_the_model_is_refused():
    size = len(toy_tokenizer())
    check_vocabulary(
        "small", transformers.BertModel(transformers.BertConfig(**SHAPE, vocab_size=size)), toy_tokenizer()
    )
    message = f"^small: its tokenizer gives ids up to {size - 1}, but the model has only 30 embeddings"
    with pytest.raises(ModelError, match=message):
        check_vocabulary("small", bert(2), toy_tokenizer())


@pytest.mark.parametrize(
    ("known", "max_length", "expected"),
    [
        (None, 12, 12),  # no tokenizer_config.json
        (14, 12, 14),
        (512, 12, 12),  # more than the model has positions: it belongs to another
        (8, 12, 12),  # it was trained with more
        (16, 16, 16),
    ],
)
def test_a_tokenizer_learns_the_length_that_its_model_can_take(known, max_length, expected):
    tokens = tokenizer() if known is None else tokenizer(model_max_length=known)
    set_length(tokens, bert(2), max_length)
    assert tokens.model_max_length == expected


def tiny(kind, depth=1):
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(CONFIGS[kind](depth))


class Factorised(torch.nn.Module):
    """Embeddings of a narrower table and a projection; the table is not called `weight`."""

    def __init__(self, rows, width):
        super().__init__()
        self.table, self.projection = torch.nn.Embedding(rows, 4), torch.nn.Linear(4, width)

    def forward(self, ids):
        return self.projection(self.table(ids))


def factorised(rows):
    model = bert(1)
    model.set_input_embeddings(Factorised(rows, 16))
    model.config.vocab_size = rows
    return model


@pytest.mark.parametrize(
    ("make", "has_table", "rows"),
    [
        (lambda: tiny("I-BERT"), True, 64),
        (lambda: tiny("BART"), True, 64),  # scaled
        (lambda: tiny("ALBERT"), True, 64),  # narrower than the layers
        (lambda: tiny("XLM"), True, 64),
        (lambda: factorised(40), False, 40),
        (lambda: tiny("CANINE"), False, 2**16),  # hashed: any id
    ],
    ids=["I-BERT", "BART", "ALBERT", "XLM", "factorised", "CANINE"],
)
def test_embeddings_need_be_no_nn_embedding(make, has_table, rows):
    model = make()
    assert (embedding_table(model) is not None) == has_table
    assert embedding_rows(model) == rows
    check_it_runs("small", model)
    if rows < len(toy_tokenizer()):
        with pytest.raises(ModelError, match=f"the model has only {rows} embeddings"):
            check_vocabulary("small", model, toy_tokenizer())
    else:
        check_vocabulary("small", model, toy_tokenizer())
        check_rows("small", model, toy_tokenizer(), is_pair=True, max_length=16)


@pytest.mark.parametrize(
    ("kind", "side", "own_pad", "expected"),
    [
        ("BERT", "right", 0, ("right", 0)),
        ("BERT", "left", 0, ("right", 0)),  # positions from the left
        ("RoBERTa", "left", 0, ("right", 0)),  # it classifies from the first position
        ("XLNet", "right", 0, ("left", 0)),  # the last position says it
        ("GPT-2", "left", None, ("right", 0)),
        ("GPT-2", "right", 5, ("right", 0)),  # its configuration names another token than its tokenizer
        ("Llama", "left", None, ("left", 0)),
        ("Qwen3", "right", None, ("right", 0)),
    ],
)
def test_padding_is_chosen_so_that_it_means_nothing(kind, side, own_pad, expected):
    model, tokens = tiny(kind, 2).eval(), toy_tokenizer()
    with torch.no_grad():
        for theta in model.parameters():
            theta.add_(0.2 * torch.randn(theta.shape))
    model.config.pad_token_id, tokens.padding_side = own_pad, side
    fit_padding("small", model, tokens)
    assert (tokens.padding_side, model.config.pad_token_id) == expected
    rows = tokens(["a", "a a a a"], padding=True, return_tensors="pt")
    names = ("input_ids", "attention_mask")
    with torch.no_grad():
        batched = model(**{name: rows[name] for name in names}).logits[0]
        alone = model(**{name: tokens(["a"], return_tensors="pt")[name] for name in names}).logits[0]
    torch.testing.assert_close(batched, alone, rtol=0, atol=1e-4)


def test_what_no_choice_mends_stays_as_it_is():
    """FNet mixes all positions."""
    config = transformers.FNetConfig(**{key: size for key, size in SHAPE.items() if "heads" not in key}, vocab_size=64)
    model, tokens = transformers.FNetForSequenceClassification(config), toy_tokenizer()
    model.config.pad_token_id, tokens.padding_side = 3, "left"
    fit_padding("small", model, tokens)
    assert (tokens.padding_side, model.config.pad_token_id) == ("left", 3)


@pytest.mark.parametrize("end", [3, 0, 63])
def test_a_row_to_try_a_model_with_ends_once(end):
    model = tiny("BART")
    model.config.eos_token_id = end
    ids = torch.randint(0, 64, (5, 9))
    mask = (torch.arange(9)[None] < torch.tensor([9, 1, 4, 8, 2])[:, None]).long()
    ended = end_rows(model, ids, mask)
    assert [row[keep.bool()].tolist().index(end) for row, keep in zip(ended, mask, strict=True)] == [8, 0, 3, 7, 1]
    assert torch.equal(ended[mask == 0], ids[mask == 0])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("CANINE", "small: of 8 tokens its layers have 2, 8 hidden states, so they"), ("BART", "gives no hidden states")],
)
def test_states_that_cannot_be_compared_are_found_before_training(kind, reason):
    with pytest.raises(ModelError, match=reason):
        check_states("small", tiny(kind))


@pytest.mark.parametrize("kind", ["BERT", "XLNet", "Llama", "ESM"])
def test_states_that_can_be_compared_are_fine(kind):
    check_states("small", tiny(kind))
