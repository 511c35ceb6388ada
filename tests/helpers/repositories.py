"""Tiny repositories with the files of those on the hub that a run of the shipped configurations reads."""

import io
import json
from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet
import safetensors.torch
import torch
import transformers
import yaml

WORDS = "a the good bad film is was not very dull fine great poor it and".split()
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = "\n".join([*_SPECIAL, *WORDS, ""]).encode()


class Layout(NamedTuple):
    """One task of GLUE as the hub has it."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    rows: Mapping[str, int]


_PAIR = ("sentence1", "sentence2")
GLUE = {
    "sst2": Layout(("sentence",), ("negative", "positive"), {"train": 48, "validation": 12, "test": 6}),
    "stsb": Layout(_PAIR, (), {"train": 48, "validation": 12, "test": 6}),
    "mnli": Layout(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        {"train": 48, "validation_matched": 12, "validation_mismatched": 9, "test_matched": 6, "test_mismatched": 5},
    ),
    # As many rows as the real one has; the others need data.check_rows=false.
    "rte": Layout(_PAIR, ("entailment", "not_entailment"), {"train": 2490, "validation": 277, "test": 3000}),
}
"""The tasks that `glue` can build, with their hub names of columns, classes and splits."""


def glue(*tasks: str) -> dict[str, bytes]:
    """The files of `nyu-mll/glue`, cut down to these tasks: a card, and a Parquet file for each split."""
    files, configs, infos = {}, [], []
    for task in tasks:
        layout, sizes = GLUE[task], []
        for split, rows in layout.rows.items():
            content = _parquet(layout, split, rows)
            files[f"{task}/{split}-00000-of-00001.parquet"] = content
            sizes.append({"name": split, "num_bytes": len(content), "num_examples": rows})
        paths = [{"split": split, "path": f"{task}/{split}-*"} for split in layout.rows]
        configs.append({"config_name": task, "data_files": paths})
        size = sum(split["num_bytes"] for split in sizes)
        info = {"config_name": task, "features": _features_of_card(layout), "splits": sizes}
        infos.append({**info, "download_size": size, "dataset_size": size})
    front = yaml.safe_dump({"language": ["en"], "dataset_info": infos, "configs": configs}, sort_keys=False)
    return {".gitattributes": b"*.parquet filter=lfs\n", "README.md": f"---\n{front}---\n\n# GLUE\n".encode(), **files}


def _features_of_card(layout: Layout) -> list[dict]:
    names = {str(index): name for index, name in enumerate(layout.labels)}
    label = {"class_label": {"names": names}} if names else "float32"
    texts = [{"name": name, "dtype": "string"} for name in layout.texts]
    return [*texts, {"name": "label", "dtype": label}, {"name": "idx", "dtype": "int32"}]


def reviews(*, names: tuple[str, ...] = ("negative", "positive"), shift: int = 0) -> dict[str, bytes]:
    """A user's data set with two configurations, `small` and `large`, of one layout; `shift` gives it other labels."""
    sizes = {"train": 40, "validation": 8, "test": 6}
    layout = Layout(("text",), names, sizes)
    files = {
        f"{config}/{split}-00000-of-00001.parquet": _parquet(layout, split, rows + shift)
        for config, splits in {"small": sizes, "large": {"train": 60}}.items()
        for split, rows in splits.items()
    }
    places = [
        {
            "config_name": config,
            "data_files": [
                {"split": path.split("/")[1].split("-")[0], "path": path} for path in files if config in path
            ],
        }
        for config in ("small", "large")
    ]
    front = yaml.safe_dump({"configs": places}, sort_keys=False)
    return {".gitattributes": b"*.parquet filter=lfs\n", "README.md": f"---\n{front}---\n".encode(), **files}


def _parquet(layout: Layout, split: str, rows: int) -> bytes:
    """A split's file; its schema carries the classes' names, and a test split's labels are -1."""
    columns = {
        name: [" ".join(WORDS[(row * step + shift) % len(WORDS)] for shift in range(4)) for row in range(rows)]
        for step, name in enumerate(layout.texts, start=1)
    }
    features = {name: {"dtype": "string", "_type": "Value"} for name in layout.texts}
    if layout.labels:
        labels = pa.array([-1 if split.startswith("test") else row % len(layout.labels) for row in range(rows)])
        features["label"] = {"names": list(layout.labels), "_type": "ClassLabel"}
    else:
        labels = pa.array([-1.0 if split.startswith("test") else row % 11 / 2 for row in range(rows)], pa.float32())
        features["label"] = {"dtype": "float32", "_type": "Value"}
    features["idx"] = {"dtype": "int32", "_type": "Value"}
    table = pa.table({**columns, "label": labels, "idx": pa.array(range(rows), pa.int32())})
    described = json.dumps({"info": {"features": features}})
    file = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": described}), file)
    return file.getvalue()


def bert(num_layers: int = 2, *, seed: int = 0) -> dict[str, bytes]:
    """The files of `google-bert/bert-base-uncased`: the old names of weights, two heads, four files of a tokenizer."""
    weights = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in _weights(num_layers, seed)}
    weights = {name.replace("LayerNorm.bias", "LayerNorm.beta"): value for name, value in weights.items()}
    tokenizer = transformers.BertTokenizer(vocab=_vocabulary(), do_lower_case=True)
    return {
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "config.json": _json(
            {"architectures": ["BertForMaskedLM"], **_shape(num_layers), "transformers_version": "4.6.0.dev0"}
        ),
        "model.safetensors": safetensors.torch.save(weights, metadata={"format": "pt"}),
        "tf_model.h5": b"for another library",
        "coreml/model.safetensors": b"for another library",
        "onnx/config.json": b"for another library",
        "tokenizer.json": tokenizer.backend_tokenizer.to_str().encode(),
        "tokenizer_config.json": _json({"do_lower_case": True, "model_max_length": 512}),
        "vocab.txt": VOCABULARY,
    }


def sharded_bert(num_layers: int = 2, *, seed: int = 0) -> dict[str, bytes]:
    """As `bert`, with its weights in two files and an index."""
    files = bert(num_layers, seed=seed)
    weights = safetensors.torch.load(files.pop("model.safetensors"))
    parts = [dict(list(weights.items())[half::2]) for half in range(2)]
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {weight: name for name, part in zip(names, parts, strict=True) for weight in part}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    contents = [safetensors.torch.save(part, metadata={"format": "pt"}) for part in parts]
    return {**files, "model.safetensors.index.json": _json(index), **dict(zip(names, contents, strict=True))}


def tinybert(num_layers: int = 1, *, seed: int = 1) -> dict[str, bytes]:
    """The files of `huawei-noah/TinyBERT_General_6L_768D`: weights for torch.load, and a bare list of words."""
    weights = dict(_weights(num_layers, seed))
    for number in range(num_layers + 1):
        weights |= {f"fit_denses.{number}.weight": torch.zeros(16, 16), f"fit_denses.{number}.bias": torch.zeros(16)}
    file = io.BytesIO()
    torch.save(weights, file)
    odd = {"cell": {}, "emb_size": 16, "pre_trained": "", "structure": [], "training": ""}
    shape = {key: value for key, value in _shape(num_layers).items() if key != "layer_norm_eps"}
    return {
        "README.md": b"TinyBERT\n",
        "config.json": _json({**shape, **odd}),
        "pytorch_model.bin": file.getvalue(),
        "vocab.txt": VOCABULARY,
    }


def _shape(num_layers: int) -> dict:
    return {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 16,
        "initializer_range": 0.02,
        "intermediate_size": 32,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64,
        "model_type": "bert",
        "num_attention_heads": 2,
        "num_hidden_layers": num_layers,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": len(_vocabulary()),
    }


def _weights(num_layers: int, seed: int) -> list[tuple[str, torch.Tensor]]:
    """Those of the encoder with `bert.` before their names, and those of the heads of its pretraining."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.BertForPreTraining(transformers.BertConfig(**_shape(num_layers)))
    shared = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
    return [(name, value.clone()) for name, value in model.state_dict().items() if name not in shared]


def _vocabulary() -> dict[str, int]:
    return {word: index for index, word in enumerate([*_SPECIAL, *WORDS])}


def _json(value: dict) -> bytes:
    return json.dumps(value, indent=2).encode()
