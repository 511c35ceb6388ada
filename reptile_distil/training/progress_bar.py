"""The bar that counts a run's examples: a line on a terminal, in a notebook one output that changes in place."""

from __future__ import annotations

import io
import sys
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN = 0.5
"""A notebook's bar changes no more often: each time is a message to whoever shows it."""


def progress_bar(*, total: int, initial: int, shown: bool = True) -> Any:
    """A `tqdm` bar of examples, with examples per second and the time left; silent on neither terminal nor notebook."""
    kind = _NotebookBar if shown and _is_notebook() else tqdm
    return kind(
        total=total, initial=initial, unit="ex", disable=None if shown else True, dynamic_ncols=True, leave=False
    )


def _is_notebook() -> bool:
    """Whether the code runs in a kernel, whose outputs can be changed after they were shown."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class _NotebookBar(tqdm):  # type: ignore[type-arg]
    """A bar that is one output of its cell, with and without ipywidgets, where tqdm's writes one each time."""

    def __init__(self, **options: Any) -> None:
        self._shown: Any = None
        # What tqdm itself writes, to clear a terminal's line, goes nowhere.
        fixed = {"file": io.StringIO(), "mininterval": _SECONDS_BETWEEN, "ncols": 88, "dynamic_ncols": False}
        fixed |= {"ascii": False}
        super().__init__(**{**options, **fixed, "disable": False, "leave": True})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Shows the bar, or shows it anew where it stands."""
        from IPython.display import display

        content = {"text/plain": str(self) if msg is None else msg}
        if self._shown is None:
            self._shown = display(content, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._shown.update(content, raw=True)
