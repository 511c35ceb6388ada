"""Tiny models and batches for tests."""

import torch
import transformers


def bert(num_layers, *, num_labels=3, width=16, dropout=0.0, seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=16,
        num_labels=num_labels,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
        **options,
    )
    return transformers.BertForSequenceClassification(config).to(dtype)


def with_rows(model, num_rows, seed=0):
    """The model with so many embeddings, new ones at the end."""
    torch.manual_seed(seed)
    old = model.get_input_embeddings().weight.detach()
    new = torch.nn.Embedding(num_rows, old.shape[1], padding_idx=0, dtype=old.dtype)
    with torch.no_grad():
        new.weight[: min(num_rows, len(old))] = old[:num_rows]
    model.set_input_embeddings(new)
    model.config.vocab_size = num_rows
    return model


def batch(num_rows=8, length=7, *, num_labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(num_rows, length, dtype=torch.long)
    mask[num_rows // 2 :, length - 2 :] = 0
    labels = torch.randint(0, num_labels, (num_rows,), generator=generator)
    return {
        "input_ids": torch.randint(1, 30, (num_rows, length), generator=generator),
        "attention_mask": mask,
        "labels": labels if num_labels > 1 else torch.rand(num_rows, generator=generator) * 5,
    }


def mixed(given):
    """The batch with labels in about every third row, the first one among them, and what says so; 1 row keeps its own.

    Rows without a label have what no loss can use; `has_label` is for the oracles.
    """
    labels = given["labels"]
    has_label = torch.arange(len(labels)) % 3 == 0
    missing = torch.full_like(labels, -1 if labels.dtype == torch.long else float("nan"))
    weights = has_label * (len(labels) / has_label.sum().double())
    known = has_label if labels.ndim == 1 else has_label[:, None]
    return {
        **given,
        "labels": torch.where(known, labels, missing),
        "task_weights": weights,
        "has_label": has_label,
    }


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before, model):
    """Names of the parameters that are not bit for bit what they were."""
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


def masked_kinds():
    """Architectures whose attention takes a mask that is added to its scores."""
    return ("albert", "bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")


def classifier(kind, num_layers=2, *, num_labels=3, width=16, seed=0):
    """A tiny sequence classifier of another architecture, with 16 rows in its position table; ALBERT's layers share."""
    common = {"vocab_size": 30, "max_position_embeddings": 16, "num_labels": num_labels, "initializer_range": 0.2}
    shape = {
        "num_hidden_layers": num_layers,
        "hidden_size": width,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    configs = {
        "bert": lambda: transformers.BertConfig(**common, **shape),
        "roberta": lambda: transformers.RobertaConfig(**common, **shape),
        "camembert": lambda: transformers.CamembertConfig(**common, **shape),
        "xlm-roberta": lambda: transformers.XLMRobertaConfig(**common, **shape),
        "electra": lambda: transformers.ElectraConfig(**common, **shape, embedding_size=8),
        "mpnet": lambda: transformers.MPNetConfig(**common, **shape),
        "albert": lambda: transformers.AlbertConfig(**common, **shape, embedding_size=8),
        "distilbert": lambda: transformers.DistilBertConfig(
            **common,
            n_layers=num_layers,
            dim=width,
            n_heads=2,
            hidden_dim=2 * width,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
        ),
    }
    torch.manual_seed(seed)
    return transformers.AutoModelForSequenceClassification.from_config(configs[kind]())
