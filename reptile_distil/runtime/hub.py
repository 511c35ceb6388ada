"""Whether the Hugging Face hub can be asked at all, found out within three seconds.

A hub call on a machine without a network tries for half a minute before it gives up. So callers look into the local
cache first (`snapshots`), call `require_hub` second, and only then download.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from reptile_distil.errors import DataError, ReptileDistilError, RunError

TIMEOUT = 3.0
"""Seconds the hub has to answer."""

_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_remembered: dict[str, bool | None] = {}
_REFUSED_BY_A_PROXY = (403, 407)


def hub_is_reachable() -> bool:
    """Whether the hub answers a HEAD request within `TIMEOUT` seconds.

    False at once when `HF_HUB_OFFLINE`, `HF_DATASETS_OFFLINE` or `TRANSFORMERS_OFFLINE` is set. The request
    goes the way a download would: `HF_ENDPOINT`, proxies and certificates as huggingface_hub has them.
    """
    if _offline_variable() is not None:
        return False
    if (answer := _remembered.get("answer")) is not None:
        return answer
    answers: list[bool] = []
    # A look-up of the host name has no timeout of its own, so the bound is on a thread, not on the socket.
    thread = threading.Thread(target=lambda: answers.append(_answers(_endpoint())), daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if "answer" in _remembered:
        _remembered["answer"] = answers == [True]
    return answers == [True]


@contextlib.contextmanager
def reachability_cached() -> Iterator[None]:
    """Inside, the hub's first answer stands: who looks for many things need not wait for each."""
    _remembered["answer"] = None
    try:
        yield
    finally:
        _remembered.clear()


def require_hub(what: str, remedy: str, *, error: type[ReptileDistilError] = DataError) -> None:
    """Raise `error` with one sentence, within `TIMEOUT` seconds, when the hub cannot be asked.

    `what` is the thing that no local cache has ("model bert-base-uncased"), `remedy` the clause that says how
    to get it.
    """
    if hub_is_reachable():
        return
    variable = _offline_variable()
    if variable is not None:
        reason = f"{variable}={os.environ[variable]} forbids a download"
    else:
        reason = f"{_endpoint()} cannot be reached (waited up to {TIMEOUT:g} seconds)"
    raise error(f"{what} is not in the local cache and {reason}: {remedy}")


def _endpoint() -> str:
    """Address of the hub or of its mirror."""
    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


def _offline_variable() -> str | None:
    """Name of the environment variable that forbids the network, or None."""
    for name in _OFFLINE_VARIABLES:
        if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}:
            return name
    return None


def _answers(url: str) -> bool:
    """Whether a HEAD request to `url` gets an answer that comes from a working server, not from a proxy."""
    try:
        status = get_session().head(url, timeout=TIMEOUT).status_code
    except Exception:  # name look-up, proxy, TLS, an URL that is none: whatever it is, a download would fail too
        return False
    return status < 500 and status not in _REFUSED_BY_A_PROXY


def push(folder: str | Path, repo: str, *, client: Any = None) -> str:
    """Uploads a model folder to the hub's `repo`, which is created private where it is missing; returns its address.

    Raises `RunError` where there is no network or token, or the hub refuses.
    """
    check_hub(folder, repo)
    client = client or huggingface_hub.HfApi()
    try:
        client.create_repo(repo, private=True, exist_ok=True)
        client.upload_folder(folder_path=str(folder), repo_id=repo, commit_message="Add the student and its card")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as error:
        raise RunError(f"--push {repo}: the hub refused: {' '.join(str(error).split())[:300]}") from None
    return f"https://huggingface.co/{repo}"


def check_hub(folder: str | Path, repo: str) -> None:
    """Raises `RunError` where the hub cannot be reached now."""
    if not hub_is_reachable():
        raise RunError(
            f"--push {repo}: the hub cannot be reached from here; leave --push out, and upload the folder "
            f"where there is a network: hf upload {repo} {folder}"
        )
