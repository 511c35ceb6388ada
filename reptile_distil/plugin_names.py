"""Names of methods and losses of the user's own, and of the run folders that follow from them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"

PluginName = Annotated[str, Field(pattern=PATTERN, max_length=200)]
"""A class in a module that Python can import, as `package.module:Name`."""


def is_plugin(name: object) -> bool:
    """Whether it names a method or loss of the user's own."""
    return isinstance(name, str) and re.match(PATTERN, name) is not None


def folder_name(method: str) -> str:
    """A method in the name of a run folder: its own name, or of the user's own the class's, in lower case.

    >>> folder_name("my_package.methods:MyDistiller"), folder_name("kd")
    ('my-distiller', 'kd')
    """
    if not is_plugin(method):
        return method
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", method.partition(":")[2])
    return words.replace("_", "-").strip("-").lower()
