"""`~` at the front of a path, for configurations and options alike."""

import os


def expand_home(text: str) -> str:
    """The path with the home folder for `~`, that of another user for `~name`; as it is where there is no such user."""
    return os.path.expanduser(text)  # noqa: PTH111 (Path's own raises where there is no such user)
