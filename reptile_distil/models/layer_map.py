"""Which teacher layer(s) each student layer is matched with, and the pairs of parameters that follow from it.

Layers are counted from 0. For 12 teacher layers and 6 student layers, student layer k is matched with teacher
layer k (`first`), k + 6 (`last`), 2k + 1 (`skip`), or both 2k and 2k + 1 (`both`). Parameters outside the
layers (embeddings, pooler, classifier) are matched one to one, by name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from reptile_distil.errors import LayerMapError
from reptile_distil.models.checks import embedding_table
from reptile_distil.runtime.each_line_once import log_once

logger = logging.getLogger(__name__)

LAYER_MAPS = ("first", "last", "skip", "both")

LayerMap = tuple[tuple[int, ...], ...]
"""Entry k holds the teacher layers that are matched with student layer k."""


class ParameterPair(NamedTuple):
    """A teacher parameter and the student parameter that it is matched with.

    Both have the same shape, but for tables of token embeddings, of which one may have more rows: one vocabulary is
    often filled up to a round number. The rows that both have are then matched.
    """

    teacher_name: str
    teacher: nn.Parameter
    student_name: str
    student: nn.Parameter

    @property
    def has_same_shape(self) -> bool:
        """Whether every row of one has a partner in the other."""
        return self.teacher.shape == self.student.shape


def resolve_layer_map(
    layer_map: str | Sequence[int | Sequence[int]], *, num_teacher_layers: int, num_student_layers: int
) -> LayerMap:
    """The teacher layers of each student layer, for a map's name or an explicit list.

    Raises `LayerMapError` where the map makes no sense for these two depths.

    >>> resolve_layer_map("skip", num_teacher_layers=12, num_student_layers=6)  # counted from 0
    ((1,), (3,), (5,), (7,), (9,), (11,))
    >>> resolve_layer_map("both", num_teacher_layers=6, num_student_layers=3)
    ((0, 1), (2, 3), (4, 5))
    """
    if num_student_layers < 1:
        raise LayerMapError("a student needs at least one layer")
    depths = f"{num_teacher_layers} teacher layers and {num_student_layers} student layers"
    if not isinstance(layer_map, str):
        return _check_explicit(layer_map, num_teacher_layers, num_student_layers)
    if layer_map not in LAYER_MAPS:
        raise LayerMapError(
            f"layer map {layer_map!r}: expected {', '.join(LAYER_MAPS)}, or a list with one entry per student layer"
        )
    if num_student_layers > num_teacher_layers:
        raise LayerMapError(f"layer map {layer_map!r}: {depths}, but the student may not be deeper")
    layers = range(num_student_layers)
    if layer_map == "first":
        return tuple((k,) for k in layers)
    if layer_map == "last":
        return tuple((k + num_teacher_layers - num_student_layers,) for k in layers)
    ratio, rest = divmod(num_teacher_layers, num_student_layers)
    if rest:
        raise LayerMapError(
            f"layer map {layer_map!r}: {depths}, but {num_teacher_layers} is no multiple of {num_student_layers}; "
            "use first, last, or a list with one entry per student layer"
        )
    if layer_map == "skip":
        return tuple((ratio * k + ratio - 1,) for k in layers)
    return tuple(tuple(range(ratio * k, ratio * (k + 1))) for k in layers)


def _check_explicit(
    layer_map: Sequence[int | Sequence[int]], num_teacher_layers: int, num_student_layers: int
) -> LayerMap:
    if not isinstance(layer_map, Sequence):
        raise LayerMapError(f"layer map {layer_map!r}: expected a name, or a list with one entry per student layer")
    resolved = tuple(tuple(entry) if isinstance(entry, Sequence) else (entry,) for entry in layer_map)
    if len(resolved) != num_student_layers:
        raise LayerMapError(
            f"layer map {list(layer_map)}: {len(resolved)} entries, but {num_student_layers} student layers"
        )
    seen: set[int] = set()
    for k, teacher_layers in enumerate(resolved):
        for j in teacher_layers:
            if not isinstance(j, int) or isinstance(j, bool):
                raise LayerMapError(f"layer map {list(layer_map)}: {j!r} is no layer number")
            if not 0 <= j < num_teacher_layers:
                raise LayerMapError(
                    f"layer map {list(layer_map)}: student layer {k} is matched with teacher layer {j}, "
                    f"but the teacher's layers are 0 to {num_teacher_layers - 1}"
                )
            if j in seen:
                raise LayerMapError(
                    f"layer map {list(layer_map)}: teacher layer {j} is given twice, but can follow only one layer"
                )
            seen.add(j)
    return resolved


def encoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The dotted name and the list of the model's encoder layers, found from the module tree.

    It is the outermost `nn.ModuleList` as long as the config's `num_hidden_layers`. Raises `LayerMapError` where
    there is none, as in ALBERT, whose layers share one set of weights, or where several lists side by side hold the
    parts of the layers, as in XLM.
    """
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if lists:
        around = lists[0][0].rpartition(".")[0]
        beside = [name for name, module in lists if name.rpartition(".")[0] == around and list(module.parameters())]
        if len(beside) > 1:
            raise LayerMapError(
                f"{type(model).__name__}: the parts of its layers lie in {len(beside)} lists ({beside[0]}, "
                f"{beside[1]}, ...), which cannot be matched or copied layer by layer: use method: kd, and "
                "student.init=pretrained"
            )
        return lists[0]
    raise LayerMapError(
        f"{type(model).__name__}: no list of {depth} encoder layers found in the model; "
        "models that share one layer's weights (ALBERT) cannot be matched or copied layer by layer: use method: kd, "
        "and student.init=pretrained"
    )


def _names_of_layers(teacher: nn.Module, student: nn.Module) -> tuple[str, str]:
    """The names of both models' lists of layers: of one architecture the same, where one depth fits two lists.

    CANINE with one layer has three lists of that length, of which another comes first.
    """
    names = encoder_layers(teacher)[0], encoder_layers(student)[0]
    if type(teacher) is type(student):
        modules = [dict(model.named_modules()) for model in (teacher, student)]
        depths = [len(encoder_layers(model)[1]) for model in (teacher, student)]
        for name in names:
            lists = [of_model.get(name) for of_model in modules]
            if all(isinstance(m, nn.ModuleList) and len(m) == n for m, n in zip(lists, depths, strict=True)):
                return name, name
    return names


def match_models(
    teacher: nn.Module, student: nn.Module, layer_map: str | Sequence[int | Sequence[int]]
) -> list[ParameterPair]:
    """Every matched pair of parameters under a map's name or an explicit list. Raises `LayerMapError`.

    One line of the log counts the parameters of matched layers that have no partner, and one the rows of embeddings,
    however often two models are matched: when a pair is checked, and when its method is made.
    """
    resolved = resolve_layer_map(
        layer_map,
        num_teacher_layers=len(encoder_layers(teacher)[1]),
        num_student_layers=len(encoder_layers(student)[1]),
    )
    pairs = pair_parameters(teacher, student, resolved)
    if names := unmatched_parameters(teacher, student, pairs, resolved):
        number = len(names)
        log_once(
            logger,
            f"{number} weight{'s' * (number > 1)} without a partner in the other model, which equation 2 leaves as "
            f"{'they are' if number > 1 else 'it is'}: {', '.join(names[:4])}{', ...' * (number > 4)}",
        )
    for pair in pairs:
        if not pair.has_same_shape:
            in_teacher, in_student = len(pair.teacher), len(pair.student)
            log_once(
                logger,
                f"the teacher has {in_teacher} embeddings, the student {in_student}: the first "
                f"{min(in_teacher, in_student)} are matched, the others stay as they are in equation 2",
            )
    return pairs


def pair_parameters(teacher: nn.Module, student: nn.Module, layer_map: LayerMap) -> list[ParameterPair]:
    """Every matched (teacher parameter, student parameter), in the student's order.

    A student parameter appears once for each teacher layer it is matched with. Layers of one architecture need not
    have all parameters in common: ModernBERT's first layer lacks a norm that the others have. Raises `LayerMapError`
    where a partner is missing for another reason or has another shape: the Reptile update subtracts one from the other.
    Token embeddings may be more in one model than in the other: both must then be read with one tokenizer.
    """
    teacher_prefix, student_prefix = _names_of_layers(teacher, student)
    teacher_parameters = dict(teacher.named_parameters())
    pairs = []
    for student_name, student_parameter in student.named_parameters():
        for teacher_name in _partners(student_name, student_prefix, teacher_prefix, layer_map):
            teacher_parameter = teacher_parameters.get(teacher_name)
            if teacher_parameter is None:
                if not _may_be_alone(student_name, student_prefix, student, teacher):
                    raise LayerMapError(_no_partner(student_name, student, teacher_name, teacher))
                continue
            pair = ParameterPair(teacher_name, teacher_parameter, student_name, student_parameter)
            if not _are_tables_of_one_width(teacher_parameter, teacher, student_parameter, student):
                if _grows_with_depth(teacher_parameter, teacher, student_parameter, student):
                    continue
                _check_shapes(pair, teacher.config, student.config)
            pairs.append(pair)
    for name in _left_over(teacher, teacher_prefix, pairs, layer_map):
        if not _may_be_alone(name, teacher_prefix, teacher, student):
            raise LayerMapError(_no_partner(name, teacher, name, student))
    return pairs


def unmatched_parameters(
    teacher: nn.Module, student: nn.Module, pairs: Sequence[ParameterPair], layer_map: LayerMap
) -> list[str]:
    """Names of the parameters that are in no pair, but for those of layers that are not matched at all."""
    teacher_prefix, student_prefix = _names_of_layers(teacher, student)
    in_pairs = {pair.student_name for pair in pairs}
    free_layers = tuple(f"{student_prefix}.{k}." for k, partners in enumerate(layer_map) if not partners)
    of_student = [
        name for name, _ in student.named_parameters() if name not in in_pairs and not name.startswith(free_layers)
    ]
    of_teacher = _left_over(teacher, teacher_prefix, pairs, layer_map)
    return [f"the teacher's {name}" for name in of_teacher] + [f"the student's {name}" for name in of_student]


def copy_layers(teacher: nn.Module, student: nn.Module, layer_map: LayerMap) -> list[str]:
    """Gives the student, in place, the teacher's weights of the layers that it is made of, and all outside the layers.

    Returns the names of the student's parameters that have no such weight in the teacher, and stay as they are.
    """
    teacher_prefix, student_prefix = _names_of_layers(teacher, student)
    of_teacher = dict(teacher.named_parameters())
    left = []
    with torch.no_grad():
        for name, theta in student.named_parameters():
            (source,) = _partners(name, student_prefix, teacher_prefix, layer_map)
            if source in of_teacher and of_teacher[source].shape == theta.shape:
                theta.copy_(of_teacher[source])
            else:
                left.append(name)
    return left


def part_of_model(model: nn.Module, name: str) -> Literal["embeddings", "encoder", "head"]:
    """Where a parameter lies: before the encoder, in it, or behind it (pooler and classifier)."""
    layers = encoder_layers(model)[0]  # such as bert.encoder.layer
    if name.startswith(_embeddings(model, layers)):
        return "embeddings"
    return "encoder" if name.startswith(layers.rpartition(".")[0] + ".") else "head"


def _embeddings(model: Any, layers: str) -> str:
    """What the names of all weights before the encoder begin with. Raises `LayerMapError` where that is not known."""
    table = embedding_table(model)
    names = [name.rpartition(".")[0] for name, weight in model.named_parameters() if weight is table]
    if table is None:  # as in CANINE, whose embeddings are several tables
        names = [name for name, _ in model.named_modules() if name.rpartition(".")[2].endswith("embeddings")]
        return _first_of(names, model)
    name = _first_of(names, model)  # such as bert.embeddings.word_embeddings
    around = name.rpartition(".")[0]
    beside_layers = not around or layers.startswith(around + ".")  # as XLNet's
    return name if beside_layers else around


def _partners(student_name: str, student_prefix: str, teacher_prefix: str, layer_map: LayerMap) -> tuple[str, ...]:
    if not student_name.startswith(student_prefix + "."):
        return (student_name,)
    layer, _, rest = student_name.removeprefix(student_prefix + ".").partition(".")
    return tuple(f"{teacher_prefix}.{j}.{rest}" for j in layer_map[int(layer)])


def _no_partner(name: str, model: nn.Module, partner: str, other: nn.Module) -> str:
    return (
        f"{name!r} of {type(model).__name__} has no partner {partner!r} in {type(other).__name__}: "
        "Reptile needs a teacher and a student of one architecture; otherwise use method: kd"
    )


def _first_of(names: Sequence[str], model: Any) -> str:
    if not names:
        raise LayerMapError(f"{type(model).__name__}: its embeddings are not found in the model: use method: kd")
    return names[0]


def _are_tables_of_one_width(one: Tensor, model: Any, other: Tensor, other_model: Any) -> bool:
    """Whether both are the token embeddings of their models, and differ in the number of tokens alone."""
    tables = embedding_table(model), embedding_table(other_model)
    return one is tables[0] and other is tables[1] and one.shape[1:] == other.shape[1:]


def _check_shapes(pair: ParameterPair, teacher_config: Any, student_config: Any) -> None:
    if not pair.has_same_shape:
        num_classes = [getattr(config, "num_labels", None) for config in (teacher_config, student_config)]
        if num_classes[0] != num_classes[1]:
            raise LayerMapError(
                f"the teacher has {num_classes[0]} classes and the student {num_classes[1]}: every method needs two "
                "models of the same classes"
            )
        raise LayerMapError(
            f"teacher {pair.teacher_name!r} has shape {tuple(pair.teacher.shape)}, student {pair.student_name!r} has "
            f"shape {tuple(pair.student.shape)}: Reptile needs teacher and student of equal width, vocabulary and "
            "classes; otherwise use method: kd"
        )


def _left_over(teacher: nn.Module, layers: str, pairs: Sequence[ParameterPair], layer_map: LayerMap) -> list[str]:
    """The teacher's parameters in no pair, but for those in layers that are not matched at all."""
    in_pairs = {pair.teacher_name for pair in pairs}
    matched_layers = tuple(f"{layers}.{j}." for partners in layer_map for j in partners)
    return [
        name
        for name, _ in teacher.named_parameters()
        if name not in in_pairs and (name.startswith(matched_layers) or not name.startswith(layers + "."))
    ]


def _may_be_alone(name: str, layers: str, model: nn.Module, other: nn.Module) -> bool:
    """Whether a parameter that is in no pair is no sign that the other model has another architecture."""
    if type(model) is not type(other):
        return False
    theirs = dict(other.named_parameters()).get(name)
    is_in_layers = name.startswith(layers + ".")
    return is_in_layers or (theirs is not None and _grows_with_depth(model.get_parameter(name), model, theirs, other))


def _grows_with_depth(one: Tensor, model: Any, other: Tensor, other_model: Any) -> bool:
    """Whether the shapes differ as the depths do, in one dimension: such as ESM's head on the attention of all layers.

    Two models of different widths never count as such.
    """
    differing = [sizes for sizes in zip(one.shape, other.shape, strict=False) if sizes[0] != sizes[1]]
    config, other_config = model.config, other_model.config
    if one.ndim != other.ndim or len(differing) != 1 or config.hidden_size != other_config.hidden_size:
        return False
    return bool(differing[0][0] * other_config.num_hidden_layers == differing[0][1] * config.num_hidden_layers)
