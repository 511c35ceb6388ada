"""Models in folders whose tokenizers differ: of words, and of their letters."""

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from reptile_distil.data import toy
from reptile_distil.models.toy import toy_config, toy_tokenizer

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def letters(**options):
    """A tokenizer of letters, with other special tokens than the toy models' and no segments."""
    vocabulary = {letter: index for index, letter in enumerate([*SPECIAL, *"abcdefghijklmnopqrstuvwxyz'."])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    inputs = ["input_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, **{"model_input_names": inputs, **names, **options}
    )


def save_words(folder, num_layers=2, width=16, **options):
    """A toy BERT and its tokenizer of words, in a folder; its name."""
    config = toy_config(f"toy-bert-{num_layers}L-{width}H")
    for name, value in options.items():
        setattr(config, name, value)
    transformers.set_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return str(folder)


def save_letters(folder, num_layers=1, *, tokenizer=None, kind=transformers.RobertaConfig):
    """A small model of another architecture and a tokenizer of letters, in a folder; its name."""
    config = kind(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=130,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.set_seed(0)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    (tokenizer or letters()).save_pretrained(folder)
    return str(folder)


def words_of(text):
    """The ids of the toy tokenizer, literally."""
    return [2, *(toy.VOCABULARY.index(word) for word in text.split()), 3]


def letters_of(text):
    """The ids of the tokenizer of letters, literally."""
    return [1, *(4 + "abcdefghijklmnopqrstuvwxyz'.".index(letter) for letter in text.replace(" ", "")), 2]
