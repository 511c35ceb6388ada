"""Students that headroom has measured before, read again where settings, rows and models are the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from reptile_distil.audit.headroom import Headroom, Measured, keep_decisive
from reptile_distil.errors import RunError
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runtime.files import read_json

logger = logging.getLogger(__name__)

DAMAGED = (ValueError, TypeError, KeyError)
"""What reading a damaged file raises."""
_OPTIONS = {"times": "--times", "num_teachers": "--teachers", "num_points": "--points"}


class KeptStudent(NamedTuple):
    """What was measured before."""

    path: Path
    settings: Mapping[str, Any]
    inputs: Any
    measured: Measured

    def check_settings(self, headroom: Headroom, targets: str) -> None:
        """Raises `RunError` where a setting that matters to these targets is another one now, naming the first."""
        both = (keep_decisive(self.settings, targets), headroom.decisive_settings(targets))
        old, new = ({_OPTIONS.get(key, key): value for key, value in settings.items()} for settings in both)
        remedy = "give another runs_dir (or a table's output), remove the file, or run again with --overwrite"
        RunFolder(self.path, remedy=remedy).check_same("a student", old, new)

    def has_settings(self, headroom: Headroom, targets: str) -> bool:
        """Whether there is no such setting."""
        try:
            self.check_settings(headroom, targets)
        except RunError:
            return False
        return True


def load_student(path: Path) -> KeptStudent | None:
    """What lies there, if anything does. Raises one of `DAMAGED` for what cannot be read."""
    if not path.exists():
        return None
    kept = read_json(path)
    identity = kept["identity"]
    return KeptStudent(path, dict(identity["settings"]), identity["inputs"], Measured.from_json(kept["measured"]))


def read_student(
    path: Path, headroom: Headroom, targets: str, inputs: Mapping[str, str], *, overwrite: bool
) -> Measured | None:
    """What was measured before, if it was of the same settings and files.

    Raises `RunError` for other settings, unless `overwrite`.
    """
    try:
        kept = load_student(path)
    except DAMAGED as error:
        logger.warning("%s cannot be read (%s): measured again", path, error)
        return None
    if kept is None:
        return None
    if not overwrite:
        kept.check_settings(headroom, targets)
    if kept.inputs == inputs and kept.has_settings(headroom, targets):
        return kept.measured
    logger.warning("%s is of other settings, rows or models: measured again", path)
    return None
