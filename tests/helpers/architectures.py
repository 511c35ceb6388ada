"""A tiny random model of each architecture in the table of configs/README.md, with a tokenizer, in a folder."""

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from reptile_distil.data import toy
from reptile_distil.models.toy import toy_tokenizer

SHAPE = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
POSITIONS = {"max_position_embeddings": 64}
VOCABULARY = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
DECODER = {"num_key_value_heads": 2, "head_dim": 8}


def _encoder(kind, **options):
    def config(depth):
        names = {"num_hidden_layers": depth, **SHAPE, **POSITIONS, **VOCABULARY}
        return getattr(transformers, f"{kind}Config")(**{**names, **options})

    return config


def _decoder(kind, **options):
    """As decoders are published: without a token to pad with."""
    return _encoder(kind, **{"pad_token_id": None, **DECODER, **options})


CONFIGS = {
    "BERT": _encoder("Bert"),
    "MiniLM (BERT)": _encoder("Bert", hidden_size=24, num_attention_heads=6, intermediate_size=48),
    "DistilBERT": lambda depth: transformers.DistilBertConfig(
        n_layers=depth, dim=16, n_heads=2, hidden_dim=32, **POSITIONS, **VOCABULARY
    ),
    "RoBERTa": _encoder("Roberta"),
    "XLM-R": _encoder("XLMRoberta"),
    "ALBERT": _encoder("Albert", embedding_size=8),
    "ELECTRA": _encoder("Electra", embedding_size=8),
    "DeBERTa": _encoder("Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "DeBERTa-v2, v3": _encoder("DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], type_vocab_size=0),
    "MPNet": _encoder("MPNet"),
    "ModernBERT": _encoder("ModernBert", cls_token_id=2, sep_token_id=3, local_attention=8),
    "EuroBERT": _encoder("EuroBert", **DECODER),
    "Funnel": lambda depth: transformers.FunnelConfig(
        block_sizes=[depth], num_decoder_layers=1, d_model=16, n_head=2, d_head=8, d_inner=32, **VOCABULARY
    ),
    "XLNet": lambda depth: transformers.XLNetConfig(d_model=16, n_layer=depth, n_head=2, d_inner=32, **VOCABULARY),
    "Longformer": lambda depth: _encoder("Longformer", attention_window=[8] * depth, sep_token_id=3)(depth),
    "I-BERT": _encoder("IBert"),
    "ESM": _encoder("Esm", mask_token_id=4),
    "CANINE": lambda depth: transformers.CanineConfig(
        num_hidden_layers=depth,
        num_hash_functions=4,
        num_hash_buckets=64,
        local_transformer_stride=16,
        pad_token_id=0,
        **SHAPE,
        **POSITIONS,
    ),
    "XLM": lambda depth: transformers.XLMConfig(emb_dim=16, n_layers=depth, n_heads=2, **POSITIONS, **VOCABULARY),
    "BART": lambda depth: transformers.BartConfig(
        d_model=16,
        encoder_layers=depth,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        **POSITIONS,
        **VOCABULARY,
    ),
    "GPT-2": lambda depth: transformers.GPT2Config(
        n_embd=16, n_layer=depth, n_head=2, n_positions=64, vocab_size=64, bos_token_id=3, eos_token_id=3
    ),
    "Llama": _decoder("Llama"),
    "Qwen3": _decoder("Qwen3"),
}
DECODERS = ("GPT-2", "Llama", "Qwen3")


def words(**options):
    """A tokenizer of the toy tasks' words as decoders have one: nothing is added, and nothing is there to pad with."""
    vocabulary = {word: index for index, word in enumerate(toy.VOCABULARY)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    names = {"unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    inputs = ["input_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, **{"model_input_names": inputs, **names, **options}
    )


def save(folder, kind, depth=2, *, tokenizer=None, seed=0, **options):
    """The folder's name, with a classifier of this kind and depth and a tokenizer in it."""
    config = CONFIGS[kind](depth)
    for name, value in options.items():
        setattr(config, name, value)
    transformers.set_seed(seed)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    if tokenizer is None:
        tokenizer = words() if kind in DECODERS else toy_tokenizer()
    tokenizer.save_pretrained(folder)
    return str(folder)
