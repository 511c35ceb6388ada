"""Files: hashes, links, removal, and waiting until they are on the disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from reptile_distil.errors import CheckpointError

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def share_files(source: Path, target: Path) -> None:
    """Makes `target` a folder with the files of `source`: the same files where the disk can link them, else copies.

    Raises `RunError` for a symbolic link in `source`.
    """
    refuse_links(source)
    for file in files_in(source):
        other = target / file.relative_to(source)
        other.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, other)
        except OSError as error:
            if error.errno in DISK_IS_FULL:
                raise
            shutil.copyfile(file, other)


def sync_file(path: Path) -> None:
    """Waits until the file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Waits until the folder's list of names is on the disk, where the system can say so."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def describe_fault(error: OSError | SafetensorError) -> str:
    """What the system says, also where it says so through safetensors."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number else str(error)


def files_in(folder: Path) -> Iterator[Path]:
    """All that is no folder, in the folder and those below it, in order."""
    return (path for path in sorted(folder.rglob("*")) if not path.is_dir())


def refuse_links(folder: Path) -> None:
    """Raises `CheckpointError` where the folder, or anything in it, is a link or no plain file or folder."""
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise CheckpointError(f"{path}: is a symbolic link or no plain file or folder")


def remove(path: Path) -> None:
    """Removes a file, a link (not what it points to) or a folder; nothing where there is none."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def hash_file(file: Path) -> str:
    """SHA-256 of the file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_files(*files: Path) -> str:
    """Hash of the files' names and bytes; a missing one counts as such. Raises `OSError`."""
    digest = hashlib.sha256()
    for file in files:
        content = "missing"
        if file.exists():
            content = hash_file(file)
        digest.update(f"{file.name}\n{content}\n".encode())
    return digest.hexdigest()
