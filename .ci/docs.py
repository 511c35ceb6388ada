"""Renders the docstrings of the public names as HTML into build/api: `python .ci/docs.py` (extra `docs`).

A docstring, annotation or name that pdoc cannot make sense of ends it: its warnings are errors.
"""

import sys
import warnings
from importlib import import_module
from pathlib import Path

import pdoc

import reptile_distil

MODULES = (
    "reptile_distil",
    "reptile_distil.runs.history",
    "reptile_distil.plots.run",
    "reptile_distil.plots.learning",
    "reptile_distil.plots.table",
    "reptile_distil.tables.statistics",
    "reptile_distil.runtime.processes",
)
"""Those that reptile_distil/README.md speaks of."""


def main(output: Path) -> None:
    """Writes the pages into the folder `output`."""
    for name in reptile_distil.__all__:  # imported when first used, where pdoc looks for what is there
        setattr(reptile_distil, name, getattr(reptile_distil, name))
    for name in MODULES:
        import_module(name)
    pdoc.render.configure(
        docformat="google", show_source=False, footer_text=f"reptile_distil {reptile_distil.__version__}"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*MODULES, output_directory=output)


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else root / "build" / "api")
