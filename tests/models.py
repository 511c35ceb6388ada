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


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before, model):
    """Names of the parameters that are not bit for bit what they were."""
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
