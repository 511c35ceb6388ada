"""One door to all scripts: `python -m reptile_distil distil ...` is `python scripts/distil.py ...`.

An installed package carries the folder scripts/ as reptile_distil/scripts/; a checkout has it beside the package. A
script is found by its name, and its `main` is called: there is no second implementation and no list to keep.
"""

from __future__ import annotations

import argparse
import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from reptile_distil.cli import run

_PACKAGE = Path(__file__).parent
_FOLDER = next(folder for folder in (_PACKAGE / "scripts", _PACKAGE.parent / "scripts") if folder.is_dir())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the script that the first argument names, with the others; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    scripts = {path.stem: path for path in sorted(_FOLDER.glob("*.py"))}
    parser = argparse.ArgumentParser(
        prog="reptile-distil",
        description="Knowledge distillation with a teacher that learns to teach.",
        epilog="\n".join(f"{name:<10} {_first_line(path)}" for name, path in scripts.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=scripts, help="followed by its own options; COMMAND --help lists them")
    name: str = parser.parse_args(arguments[:1]).command
    # What the script's own help calls itself, and what the run's environment.json says was started.
    sys.argv = [str(Path(sys.argv[0]).with_name(f"reptile-distil {name}")), *arguments[1:]]
    return run(runpy.run_path(str(scripts[name]))["main"], arguments[1:])


def _first_line(script: Path) -> str:
    """What a script says it does."""
    return (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
