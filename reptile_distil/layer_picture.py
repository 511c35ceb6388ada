"""A layer map as a small picture for the terminal."""

from __future__ import annotations

from reptile_distil.models.layer_map import LayerMap

_LABEL_WIDTH = 7  # "teacher", "student"


def draw_layer_map(layer_map: LayerMap, *, num_teacher_layers: int, width: int = 80) -> str:
    """Three lines: the teacher's layers, an arrow at each that is moved, and the student layer that moves it.

    Where the layers do not fit into `width` columns, they go on in further lines. A dot stands for a teacher layer that
    nothing moves.

    >>> print(draw_layer_map(((1,), (3,)), num_teacher_layers=4))
    teacher  0  1  2  3
             ·  ↑  ·  ↑
    student     0     1
    """
    moved_by = {layer: k for k, layers in enumerate(layer_map) for layer in layers}
    cell = 1 + max(2, len(str(num_teacher_layers - 1)))
    per_line = max((width - _LABEL_WIDTH) // cell, 1)
    lines = []
    for start in range(0, num_teacher_layers, per_line):
        layers = range(start, min(start + per_line, num_teacher_layers))
        rows = {
            "teacher": [str(layer) for layer in layers],
            "": ["↑" if layer in moved_by else "·" for layer in layers],
            "student": [str(moved_by.get(layer, "")) for layer in layers],
        }
        for name, cells in rows.items():
            lines.append((name.ljust(_LABEL_WIDTH) + "".join(text.rjust(cell) for text in cells)).rstrip())
    return "\n".join(lines)
