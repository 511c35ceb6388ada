"""Programs that answer with a saved student: through transformers, and through onnxruntime without PyTorch.

They are text, for the model card: whoever gets the student has nothing of this package.
"""

from __future__ import annotations

from reptile_distil.data.tasks import Task


def pipeline_program(task: Task, *, max_length: int, model: str = "PATH_OR_REPO") -> str:
    """Python that loads the folder or repository `model` with transformers, and prints its answer to two texts."""
    inputs = _list_of(*(_DICTS if task.is_pair else _TEXTS))
    options = f"{'top_k=None, ' * task.multi_label}truncation=True, max_length={max_length}"
    return (
        "from transformers import pipeline\n\n"
        f'classify = pipeline("text-classification", model="{model}")  # a folder, or a name on the hub\n'
        f"print(classify({inputs}, {options}))  # {_meaning_in_pipeline(task)}"
    )


def onnx_program(task: Task, *, max_length: int, folder: str = "PATH", file: str = "model_int8.onnx") -> str:
    """Python that answers with `folder`/onnx/`file` by onnxruntime, numpy and a tokenizer, without PyTorch.

    It defines `classify`, of a list of texts, or of pairs for a pair task, and prints its answer to one and to two.
    """
    name = "score" if task.is_regression else "classify"
    given = "pairs" if task.is_pair else "texts"
    texts = "*map(list, zip(*pairs))" if task.is_pair else "texts"
    examples = _PAIRS if task.is_pair else _TEXTS
    return _ONNX_PROGRAM.format(
        folder=folder,
        file=file,
        labels="" if task.is_regression else _LABELS,
        name=name,
        given=given,
        meaning=_meaning(task),
        texts=texts,
        max_length=max_length,
        answer=_ANSWERS["regression" if task.is_regression else "sets" if task.multi_label else "classes"],
        one=_list_of(examples[0]),
        two=_list_of(*examples),
    )


_ONNX_PROGRAM = '''\
import json
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import AutoTokenizer  # does without PyTorch

folder = Path("{folder}")
tokenizer = AutoTokenizer.from_pretrained(folder)
session = onnxruntime.InferenceSession(folder / "onnx" / "{file}", providers=["CPUExecutionProvider"])
names = [item.name for item in session.get_inputs()]
{labels}

def {name}({given}):
    """{meaning}"""
    tokens = tokenizer({texts}, padding=True, truncation=True, max_length={max_length}, return_tensors="np")
    (logits,) = session.run(["logits"], {{name: tokens[name].astype(np.int64) for name in names}})
{answer}


print({name}({one}))  # one
print({name}({two}))  # a batch'''

_LABELS = """\
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
"""

_ANSWERS = {
    "classes": """\
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)  # softmax
    return [(labels[row.argmax()], float(row.max())) for row in probabilities]""",
    "sets": """\
    probabilities = 1 / (1 + np.exp(-logits))  # sigmoid: each label is a decision of its own
    return [{label: float(value) for label, value in zip(labels, row) if value > 0.5} for row in probabilities]""",
    "regression": """\
    return [float(row[0]) for row in logits]  # the number itself""",
}

# Texts, and pairs of texts for each of both, as Python writes them.
_TEXTS = '"a text"', '"another text"'
_PAIRS = '("a text", "its partner")', '("another text", "its own")'
_DICTS = '{"text": "a text", "text_pair": "its partner"}', '{"text": "another text", "text_pair": "its own"}'


def _list_of(*items: str) -> str:
    return f"[{', '.join(items)}]"


def _meaning(task: Task) -> str:
    """What the program's function returns, for its docstring."""
    each = "pair of texts" if task.is_pair else "text"
    if task.is_regression:
        return f"The number for each {each}."
    if task.multi_label:
        return f"For each {each} the labels whose probability is above a half, with their probabilities."
    return f"The most probable label of each {each}, and its probability."


def _meaning_in_pipeline(task: Task) -> str:
    if task.is_regression:
        return "score: the number itself"
    return "a probability for each label" if task.multi_label else "the most probable label and its probability"
