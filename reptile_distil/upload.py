"""A model folder onto the hub: only where it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from reptile_distil.errors import RunError
from reptile_distil.hub import hub_is_reachable


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
