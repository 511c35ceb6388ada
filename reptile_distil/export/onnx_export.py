"""A student as an ONNX file, checked against PyTorch, and its int8 version. Needs the extra `onnx`."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from reptile_distil.errors import MissingExtraError, ModelError, first_sentence
from reptile_distil.models.checks import embedding_rows, end_rows
from reptile_distil.runtime.files import describe_fault, make_folder, replace_file
from reptile_distil.runtime.measuring import is_out_of_memory, pad_at_random, random_batch

PARITY = 1e-4
"""Largest difference of a logit between PyTorch and onnxruntime that an export may have."""

_SHAPES = ((1, 1), (1, 7), (3, 16), (8, 5), (2, 128))
_OPSET = 17


class OnnxModel(nn.Module):
    """A saved ONNX classifier with the inputs and outputs of the PyTorch one, on the CPU: `Classifier` wraps both."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what ends the process: an error is raised, and said once
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input_names = [item.name for item in self.session.get_inputs()]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Logits (B, C) from ids, mask and segments (B, L)."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        feed = {name: value.numpy() for name, value in given.items() if name in self.input_names and value is not None}
        (logits,) = self.session.run(None, feed)
        return SequenceClassifierOutput(logits=torch.from_numpy(logits))


def require_onnx() -> None:
    """Raises `MissingExtraError` unless onnx and onnxruntime are installed."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"ONNX needs {' and '.join(missing)}: pip install 'reptile-distil[onnx]'")


def export_onnx(model: Any, tokenizer: Any, path: str | Path) -> float:
    """Writes the classifier (on the CPU) as ONNX, batch size and length free; returns `parity` with PyTorch.

    Inputs are those that the tokenizer gives and the model takes, int64 (B, L); the output is `logits` (B, C). Raises
    `MissingExtraError`, or `ModelError` where the exporter or onnxruntime cannot take the model, a logit differs by
    more than `PARITY`, or the file cannot be written; the file that was there before is then as it was.
    """
    require_onnx()
    path = Path(path)
    differences = []

    def export(new: Path) -> None:
        with _one_sentence(path, f"a {type(model).__name__} cannot be exported to ONNX", "leave --onnx out"):
            _export(model.eval(), tokenizer, new)
            differences.append(parity(model, OnnxModel(new)))
        if not differences[0] <= PARITY:
            raise ModelError(
                f"{path}: the ONNX export of {type(model).__name__} differs from PyTorch by {differences[0]:.1e} in a "
                f"logit, more than {PARITY:.0e}; it is not kept"
            )

    _replace(path, export)
    return differences[0]


def _export(model: Any, tokenizer: Any, path: Path) -> None:
    taken = inspect.signature(model.forward).parameters
    names = [name for name in tokenizer.model_input_names if name in taken]
    example = _examples(model, shapes=[(2, 8)])[1]
    with _quiet():
        # The exporter that traces: the one on torch.export takes half a minute for a model of two layers.
        torch.onnx.export(
            _LogitsOf(model, names).eval(),
            tuple(example[name] for name in names),
            str(path),
            input_names=names,
            output_names=["logits"],
            dynamic_axes={**{name: {0: "batch", 1: "sequence"} for name in names}, "logits": {0: "batch"}},
            opset_version=_OPSET,
            dynamo=False,
        )


@contextmanager
def _one_sentence(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Exporter, onnxruntime and quantiser each have exceptions of their own; those of memory and disk pass through."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ModelError) or describe_fault(error) is not None or is_out_of_memory(error):
            raise
        raise ModelError(f"{path}: {what}: {first_sentence(error)}; {remedy}") from None


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces a file by what `write` writes, and makes its folder. Raises `ModelError`, also where that is a link."""
    try:
        if path.parent.is_symlink():
            raise ModelError(f"{path.parent}: is a symbolic link, which is not followed; remove it")
        make_folder(path.parent)
        try:
            replace_file(path, write)
        finally:
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    except Exception as error:  # onnx and onnxruntime have exceptions of their own
        if isinstance(error, ModelError) or describe_fault(error) is None:
            raise
        raise ModelError(f"{path}: cannot be written: {describe_fault(error)}") from None


@torch.no_grad()
def parity(model: Any, exported: OnnxModel) -> float:
    """The largest absolute difference of a logit, over full and padded batches of shapes that were not traced."""
    positions = getattr(model.config, "max_position_embeddings", None)
    limit = positions - 2 if isinstance(positions, int) and positions > 2 else 512  # RoBERTa's positions start at 2
    taken = exported.input_names
    differences = []
    for batch in _examples(model, shapes=[(rows, min(length, limit)) for rows, length in _SHAPES]):
        inputs = {name: value for name, value in batch.items() if name in taken}
        differences.append((model(**inputs).logits - exported(**batch).logits).abs().max())
    return float(torch.stack(differences).max())


def quantize_int8(path: str | Path, target: str | Path) -> None:
    """Writes the ONNX model with int8 weights; activations are quantised as they come (dynamic quantisation).

    Raises `MissingExtraError`, or `ModelError` where the quantiser cannot take it, or the file cannot be written.
    """
    require_onnx()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def quantize(new: Path) -> None:
        with _one_sentence(Path(target), "the ONNX model cannot be quantised", "leave --int8 out"):
            quantize_dynamic(str(path), str(new), weight_type=QuantType.QInt8)

    with _quiet():
        _replace(Path(target), quantize)


class _LogitsOf(nn.Module):
    """The model as a function of its inputs in order: what an exporter can trace."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


def _examples(model: Any, *, shapes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """For each (rows, length), a batch of random tokens and the same batch with padding."""
    vocab_size, pad = embedding_rows(model), model.config.pad_token_id or 0
    batches = []
    for seed, (rows, length) in enumerate(shapes):
        full = random_batch(rows, length, vocab_size=vocab_size, pad_token_id=pad, seed=seed)
        padded = pad_at_random(full, pad_token_id=pad, seed=seed)
        batches += [
            {**batch, "input_ids": end_rows(model, batch["input_ids"], batch["attention_mask"])}
            for batch in (full, padded)
        ]
    return batches


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of the tracer and of the quantiser: what they fear is what `parity` and the dev score measure."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
