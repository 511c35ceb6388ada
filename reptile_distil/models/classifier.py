"""Teacher and Student around any transformers sequence classifier; several teachers as one."""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn

from reptile_distil.data.batches import Batch
from reptile_distil.data.features import TEACHER_COLUMNS, TOKEN_COLUMNS
from reptile_distil.errors import ModelError
from reptile_distil.models.half_precision import HalfPrecisionWeights
from reptile_distil.runtime.processes import local_part

TAKE_A_BIAS = {"albert", "bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"}
"""Model types whose attention adds a mask (B, 1, 1, L) to its scores as it is, and sees all where there is none."""


OutputName = Literal["hidden_states", "attentions", "projections"]
"""What a classifier gives beside its logits, where it is asked for it."""

PROJECTION_NAMES = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    tuple("qkv"),
)
"""What the three linear layers of an attention are called: in BERT, in DistilBERT, in BART, in MPNet, and others."""


class Projections(NamedTuple):
    """What one layer's attention compares and mixes, (B, L, D) each: all heads, one behind the other."""

    queries: Tensor
    keys: Tensor
    values: Tensor


class Outputs(NamedTuple):
    """What a classifier says of a batch: its logits, and of the rest what it was asked for."""

    logits: Tensor
    """(B, C)."""
    hidden_states: tuple[Tensor, ...] = ()
    """The embeddings' output and that of each layer, (B, L, H) each."""
    attentions: tuple[Tensor, ...] = ()
    """Probabilities (B, A, L, L) of each layer, as the model gives them: in training after dropout."""
    projections: tuple[Projections, ...] = ()
    """Queries, keys and values of each layer, as its linear layers give them."""

    def without_graph(self) -> Outputs:
        """The same values, through which no gradient flows."""
        return Outputs(
            self.logits.detach(),
            tuple(states.detach() for states in self.hidden_states),
            tuple(maps.detach() for maps in self.attentions),
            tuple(Projections(*(part.detach() for part in layer)) for layer in self.projections),
        )


class Classifier(nn.Module):
    """A sequence classifier that takes a batch and returns its logits.

    Args:
        model: a transformers sequence classifier, or a module that is called and answers as one. A forward pass of
            your own that has `**kwargs` gets all of `TOKEN_COLUMNS` that the batch has, to pass on to what it wraps.
        autocast_dtype: run the forward pass under autocast to this dtype; None: in the weights' own.
        packed: compute on the batch's real tokens alone (see `packing`); the logits are the same up to rounding.

    Raises:
        ModelError: the model's forward pass does not take `input_ids` by name, as that of a wrapper around a model, or
            the model cannot be packed.
    """

    columns = ""
    """What the names of its columns in a batch begin with."""

    def __init__(self, model: nn.Module, *, autocast_dtype: torch.dtype | None = None, packed: bool = False) -> None:
        super().__init__()
        inputs = _inputs_of(model)
        if "input_ids" not in inputs:
            raise ModelError(
                f"{type(model).__name__}.forward() names no input_ids: give the model itself, not a wrapper of "
                "torch.compile or nn.DataParallel around it (model.compile() compiles it in place)"
            )
        if packed:
            from reptile_distil.models.packing import use_packing  # it takes transformers' models, two seconds

            use_packing(model)
        self.model = model
        self.autocast_dtype = autocast_dtype
        self.packed = packed
        self._inputs = inputs
        self._takes_a_bias = takes_a_bias(model)
        self._half = HalfPrecisionWeights(model, autocast_dtype) if autocast_dtype is not None else None

    @classmethod
    def wrap(cls, model: nn.Module) -> Self:
        """The model itself where it is such a wrapper already, else a wrapper around it."""
        if isinstance(model, cls):
            return model
        if isinstance(model, Classifier):
            return cls(model.model, autocast_dtype=model.autocast_dtype, packed=model.packed)
        return cls(model)

    @property
    def trainable(self) -> list[Tensor]:
        """The parameters that take gradients."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, C). Entries of the batch that the model does not take, such as labels, are left out."""
        return self.outputs(batch).logits

    def outputs(self, batch: Batch, *, needs: Collection[OutputName] = ()) -> Outputs:
        """Logits, and what else is asked for by its name in `Outputs`.

        Raises `ModelError` where the model gives none, or something else than an object with logits.
        """
        named = {name: self.columns + name for name in self._inputs}
        inputs: dict[str, Any] = {name: batch[column] for name, column in named.items() if column in batch}
        lengths = None if self.columns else _known(batch.get("lengths"))
        packed = self.packed and "attention_mask" in inputs and not needs
        inputs |= {f"output_{name}": True for name in ("hidden_states", "attentions") if name in needs}
        if self._takes_a_bias and not packed and not self.columns:
            inputs["attention_mask"] = self._mask_of(batch, lengths)
        # Autocast ends with the forward pass: a longer one would keep half-precision copies of weights that moved.
        with (
            torch.autocast(
                inputs["input_ids"].device.type,
                dtype=self.autocast_dtype,
                enabled=self.autocast_dtype is not None,
            ),
            contextlib.nullcontext() if self._half is None else self._half.inside(),
            _caught_projections(self.model, wanted="projections" in needs) as projections,
        ):
            if packed:
                from reptile_distil.models.packing import packed_logits

                return Outputs(packed_logits(self.model, inputs, lengths))
            output = self.model(**inputs)
        if not isinstance(getattr(output, "logits", None), Tensor):
            raise ModelError(
                f"{type(self.model).__name__}.forward() returns a {type(output).__name__} without logits: expected an "
                "object with the tensor .logits (B, C), and .hidden_states or .attentions where a loss asks for them, "
                "such as transformers' SequenceClassifierOutput (of a transformers model: config.return_dict=True)"
            )
        return Outputs(
            output.logits,
            self._given(output, "hidden_states") if "hidden_states" in needs else (),
            self._given(output, "attentions") if "attentions" in needs else (),
            tuple(projections),
        )

    def _given(self, output: Any, name: str) -> tuple[Tensor, ...]:
        """What the model returns by name: where it is None, or an empty tuple, a loss on it would be 0 in silence."""
        given = getattr(output, name, None)
        if given and all(isinstance(of_layer, Tensor) for of_layer in given):
            return tuple(given)
        remedy, config = "", getattr(self.model, "config", None)
        if name == "attentions" and getattr(config, "_attn_implementation", "eager") != "eager":
            remedy = "; only attention that is written out gives its probabilities: set compute.attention=eager"
        raise ModelError(
            f"{type(self.model).__name__} gives no {name.replace('_', ' ')}: a loss on them cannot be computed{remedy}"
        )

    def _mask_of(self, batch: Batch, lengths: Tensor | None) -> Tensor | None:
        """The bias, or no mask where the CPU knows that there is no padding; else the mask that is given."""
        if "attention_bias" in batch:
            return batch["attention_bias"].to(self.autocast_dtype or next(self.model.parameters()).dtype)
        if lengths is not None and int(lengths.min()) == batch["input_ids"].shape[1]:
            return None
        return batch.get("attention_mask")


def _inputs_of(model: nn.Module) -> set[str]:
    """The columns of a batch that the model's forward pass takes, labels aside: those that it names.

    What a wrapper passes on by `**kwargs` cannot be known: it takes every token column, without which it would attend
    to padding. The `**kwargs` of transformers' own models are options, and those of `*args, **kwargs` say nothing.
    """
    named = inspect.signature(model.forward).parameters
    kinds = {parameter.kind for parameter in named.values()}
    is_of_transformers = (getattr(model.forward, "__module__", None) or "").startswith("transformers.")
    hides_all = "input_ids" not in named and inspect.Parameter.VAR_POSITIONAL in kinds
    passes_on = inspect.Parameter.VAR_KEYWORD in kinds and not is_of_transformers and not hides_all
    return (set(named) | set(TOKEN_COLUMNS if passes_on else ())) - {"labels"}


def takes_a_bias(model: nn.Module) -> bool:
    """Whether the model's attention takes `attention_bias`, and no mask where there is no padding.

    transformers passes a mask of four dimensions on where it makes masks with one function for all architectures, which
    its earlier versions did for fewer.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return kind in TAKE_A_BIAS and hasattr(sys.modules[type(model).__module__], "create_bidirectional_mask")


@contextlib.contextmanager
def _caught_projections(model: nn.Module, *, wanted: bool) -> Iterator[list[Projections]]:
    """Where it is wanted, fills the list, on the way out, with queries, keys and values of each layer as it is called.

    Raises `ModelError` where the model does not compute them by three linear layers each, or attends to earlier tokens
    alone.
    """
    if not wanted:
        yield []
        return
    layers = _projecting_layers(model)
    caught: tuple[list[Any], list[Any], list[Any]] = ([], [], [])

    def catcher(parts: list[Any]) -> Any:
        return lambda _module, _inputs, output: parts.append(output)

    handles = [
        linear.register_forward_hook(catcher(parts))
        for layer in layers
        for linear, parts in zip(layer, caught, strict=True)
    ]
    projections: list[Projections] = []
    try:
        yield projections
    finally:
        for handle in handles:
            handle.remove()
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", len(layers))
    if {len(parts) for parts in caught} != {depth} or not all(isinstance(p, Tensor) for parts in caught for p in parts):
        raise ModelError(
            f"{_no_projections(model)}: its {depth} layers have given {', '.join(str(len(parts)) for parts in caught)}"
        )
    projections += [Projections(*layer) for layer in zip(*caught, strict=True)]


def _projecting_layers(model: nn.Module) -> list[tuple[nn.Module, ...]]:
    """The three linear layers of each attention of the model. Raises `ModelError` as `_caught_projections`."""
    layers = []
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise ModelError(f"{_no_projections(model)}, or compute.compile=false: it is compiled")
    for module in model.modules():
        parts = dict(module.named_children())
        names = next((names for names in PROJECTION_NAMES if all(name in parts for name in names)), None)
        if names is None:
            continue
        if getattr(module, "is_causal", False):
            raise ModelError(f"{_no_projections(model)}: it is a decoder, whose tokens attend to earlier ones alone")
        layers.append(tuple(parts[name] for name in names))
    if not layers:
        known = ", ".join("/".join(names) for names in PROJECTION_NAMES)
        raise ModelError(f"{_no_projections(model)}: its layers have no linear layers called {known}")
    return layers


def _no_projections(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} gives no queries, keys and values for a loss on them; take another model, or set "
        "loss.relations.weight=0 and loss.attention.weight=0"
    )


def _known(lengths: Tensor | None) -> Tensor | None:
    """The rows' lengths where they can be read without waiting for a device."""
    return lengths if lengths is not None and lengths.device.type == "cpu" else None


class Student(Classifier):
    """The classifier that learns."""


class Teacher(Classifier):
    """The classifier that gives soft labels: always in eval mode, never in the student's graph, yet trainable.

    With `has_own_tokens` it reads the columns of a batch that its own tokenizer has made (see `Features.of_teacher`).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        autocast_dtype: torch.dtype | None = None,
        packed: bool = False,
        has_own_tokens: bool = False,
    ) -> None:
        super().__init__(model, autocast_dtype=autocast_dtype, packed=packed)
        self.columns = TEACHER_COLUMNS if has_own_tokens else ""
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever is asked: dropout has no place in soft labels."""
        return super().train(False)

    def outputs(self, batch: Batch, *, needs: Collection[OutputName] = ()) -> Outputs:
        """As any classifier's, in eval mode even where someone has put the inner model into train mode."""
        self.eval()
        return super().outputs(batch, needs=needs)

    def soft_labels(self, batch: Batch) -> Tensor:
        """Logits (B, C) without a graph, from the weights as they are now."""
        return self.targets(batch).logits

    @torch.no_grad()
    def targets(self, batch: Batch, *, needs: Collection[OutputName] = ()) -> Outputs:
        """What a student is compared with, without a graph, from the weights as they are now."""
        return self.outputs(batch, needs=needs)


def wrap_pair(teacher: nn.Module, student: nn.Module) -> tuple[Teacher, Student]:
    """Both models, wrapped.

    Raises `ValueError` where training the student would change the teacher's own weights, and where a module is in
    both: the teacher's forward pass would put the student's part of it into eval mode.
    """
    wrapped = Teacher.wrap(teacher), Student.wrap(student)
    of_teacher = {_place(theta) for theta in wrapped[0].parameters()}
    if any(_place(theta) in of_teacher for theta in wrapped[1].trainable):
        raise ValueError("teacher and student share weights: give two models, or copy.deepcopy(teacher) as the student")
    of_student = {id(module) for module in wrapped[1].modules()}
    if shared := [name for name, module in wrapped[0].model.named_modules() if id(module) in of_student]:
        raise ValueError(
            f"teacher and student share the module {shared[0] or type(wrapped[0].model).__name__!r}, which would be in "
            "eval mode, without dropout, for the student too: give the student a copy.deepcopy of it"
        )
    return wrapped


def _place(theta: Tensor) -> int:
    """Where the values lie: two parameters may share them."""
    return local_part(theta).data_ptr() or id(theta)


def count_parameters(model: nn.Module) -> int:
    """Number of weights, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


class Ensemble(nn.Module):
    """Classifiers of the same classes, whose tempered probabilities it averages; of one logit, the values.

    As a teacher at the same temperature T it gives the soft labels (p_1 + ... + p_K) / K, p_k = softmax(z_k / T): its
    logits are T * log of that. Of a multi-label task p_k = sigmoid(z_k / T) for each label, whose logits are T times
    the log-odds of the mean. Members may have different architectures, and share the tokenizer.

    Args:
        members: the classifiers.
        temperature: T.

    Raises `ValueError` where there is no member.
    """

    def __init__(self, members: Sequence[Classifier], *, temperature: float) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one member")
        self.members = nn.ModuleList(members)
        self.temperature = temperature
        first: Any = members[0].model
        self.config = first.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Any:
        """Logits (B, C) for ids, mask and types (B, L), as a transformers model gives them."""
        from transformers.modeling_outputs import SequenceClassifierOutput  # it takes two seconds

        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        batch = {name: tensor for name, tensor in given.items() if tensor is not None}
        logits = torch.stack([member(batch) for member in self.members])
        multi_label = self.config.problem_type == "multi_label_classification"
        return SequenceClassifierOutput(
            logits=mean_logits(logits, temperature=self.temperature, multi_label=multi_label)
        )


def in_float(tensor: Tensor) -> Tensor:
    """In float32 at least: half precision loses small probabilities, and autocast may have produced it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def mean_logits(logits: Tensor, *, temperature: float, multi_label: bool = False) -> Tensor:
    """Logits (B, C) whose probabilities at temperature T are the mean of those of several models' logits (K, B, C).

    Of a single logit, the values' mean; of a multi-label task each label has a probability of its own. In float32 at
    least: half precision, which autocast may have produced, would round the mean.
    """
    logits = in_float(logits)
    if logits.shape[2] == 1 and not multi_label:
        return logits.mean(dim=0)
    tempered = logits / temperature
    if multi_label:
        return temperature * (_log_mean(F.logsigmoid(tempered)) - _log_mean(F.logsigmoid(-tempered)))
    return temperature * _log_mean(torch.log_softmax(tempered, dim=2))


def _log_mean(log_probabilities: Tensor) -> Tensor:
    """(B, C) log of the mean probabilities, from their logs (K, B, C)."""
    return torch.logsumexp(log_probabilities, dim=0) - math.log(len(log_probabilities))
