"""Files: the one way to write, read, hash and remove them.

What is written replaces the old file or folder as a whole, and is on the disk when the call returns; nothing is written
through a symbolic link. What is read is a regular file, so that nothing waits for a pipe. Each `OSError` raised here
has the full path.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from reptile_distil.errors import CheckpointError

_TEMPORARY = re.compile(r"\.(?P<shared>.+)\.[0-9a-f]{32}\.new|(?P<own>.+)\.(?:new|old)|\.(?:new|old)-(?P<earlier>.+)")
"""Names of what is being written or removed; the last form is that of earlier versions."""
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Replaces the file by this text, in UTF-8, as `replace_file` does."""
    write_bytes(path, text.encode(), shared=shared)


def write_bytes(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Replaces the file by these bytes, as `replace_file` does."""

    def write(new: Path) -> None:
        with new.open("xb") as file:
            file.write(content)

    replace_file(path, write, shared=shared)


def replace_file(path: Path, write: Callable[[Path], object], *, shared: bool = False) -> None:
    """Replaces the file by what `write` writes at the path that it is given, or leaves it as it was.

    With `shared`, several processes may do so at once. Raises `OSError`, also where there is a link or no regular file.
    """
    with naming(path):
        _refuse_special(path)
        new = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new" if shared else f"{path.name}.new")
        try:
            remove(new)
            write(new)
            _open_as_usual(new)
            sync_file(new)
            new.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                remove(new)
            raise
        sync_folder(path.parent)


def _open_as_usual(*files: Path) -> None:
    """Gives files that were written for their owner alone, as safetensors writes them, what the umask allows."""
    umask = os.umask(0o077)  # there is no way to ask for it without setting it
    os.umask(umask)
    for file in files:
        if stat.S_IMODE(file.lstat().st_mode) == 0o600:
            file.chmod(0o666 & ~umask)


def append_text(path: Path, text: str) -> None:
    """Adds text to the end of the file, which need not exist. Raises `OSError`, also where it is a link."""
    with naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_FOLLOW | _NO_WAIT, 0o666)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(text)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Replaces the folder by the one that `write` makes at the path that it is given, or leaves it as it was.

    A reader sees the old folder, none for a moment, or the whole new one. A link is replaced, not followed. Raises
    `OSError`.
    """
    new, old = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.old")
    with naming(path):
        remove(old)
        try:
            remove(new)
            write(new)
            _open_as_usual(*files_in(new))
            sync_tree(new)
            if os.path.lexists(path):
                path.rename(old)
            new.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                if os.path.lexists(old):
                    old.rename(path)
            with contextlib.suppress(OSError):
                remove(new)
            raise
        sync_folder(path.parent)
        remove(old)


def remove_folder(path: Path) -> None:
    """Removes a folder; where that is cut short, what is left has another name. Raises `OSError`."""
    old = path.with_name(f"{path.name}.old")
    with naming(path):
        remove(old)
        if os.path.lexists(path):
            path.rename(old)
            remove(old)


def remove(path: Path) -> None:
    """Removes a file, a link (not what it points to) or a folder; nothing where there is none. Raises `OSError`."""
    with naming(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()


def finished_name(name: str) -> str | None:
    """The name of the file or folder that one of this name was to become, or was; None for any other name."""
    found = _TEMPORARY.fullmatch(name)
    return None if found is None else found["shared"] or found["own"] or found["earlier"]


def make_folder(path: Path) -> None:
    """Makes the folder and its missing parents, all of them on the disk. Raises `OSError`."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with naming(path):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def copy_files(source: Path, target: Path) -> None:
    """Makes `target` a folder with copies of the files of `source`. Raises `OSError`; `CheckpointError` for a link."""
    refuse_links(source)
    target.mkdir(exist_ok=True)
    for file in files_in(source):
        other = target / file.relative_to(source)
        with naming(other):
            other.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, other)


def sync_file(path: Path) -> None:
    """Waits until the file's content is on the disk."""
    with open_regular(path) as file, naming(path):
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Waits until the folder's list of names is on the disk, where the system can say so."""
    with naming(path), contextlib.suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until all files of the folder, those below it and their names are on the disk."""
    for path in sorted((folder, *folder.rglob("*")), reverse=True):
        (sync_folder if path.is_dir() else sync_file)(path)


def open_regular(path: Path, *, max_bytes: int | None = None) -> BufferedReader:
    """The file, opened to be read. Raises `OSError`, also where it is no regular file or has more bytes than that."""
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | getattr(os, "O_BINARY", 0))
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            if max_bytes is not None and state.st_size > max_bytes:
                raise OSError(errno.EFBIG, f"it has {state.st_size} bytes, more than {max_bytes}")
        except BaseException:
            os.close(descriptor)
            raise
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, *, max_bytes: int | None = None) -> bytes:
    """The content of a regular file. Raises `OSError`."""
    with open_regular(path, max_bytes=max_bytes) as file, naming(path):
        return file.read()


def read_text(path: Path, *, max_bytes: int | None = None) -> str:
    """The text of a regular file in UTF-8. Raises `OSError` and `ValueError`."""
    return read_bytes(path, max_bytes=max_bytes).decode()


def read_json(path: Path) -> Any:
    """The values in a regular file. Raises `OSError`, and `ValueError` for anything but JSON."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("too many values within values") from None


def hash_file(path: Path) -> str:
    """SHA-256 of the content of a regular file. Raises `OSError`."""
    with open_regular(path) as file, naming(path):
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(*files: Path) -> str:
    """Hash of the files' names and bytes; a missing one counts as such. Raises `OSError`."""
    digest = hashlib.sha256()
    for file in files:
        content = hash_file(file) if os.path.lexists(file) else "missing"
        digest.update(f"{file.name}\n{content}\n".encode())
    return digest.hexdigest()


def files_in(folder: Path) -> Iterator[Path]:
    """All that is no folder, in the folder and those below it, in order."""
    return (path for path in sorted(folder.rglob("*")) if not path.is_dir())


def refuse_links(folder: Path) -> None:
    """Raises `CheckpointError` where the folder, or anything in it, is a link or no plain file or folder."""
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise CheckpointError(f"{path}: is a symbolic link or no plain file or folder")


def check_replaceable(path: Path, *, makes_folders: bool = False) -> None:
    """Raises the `OSError` that `replace_file` would meet, as far as it can be known before there is anything to write.

    With `makes_folders`, those above the file need not exist.
    """
    with naming(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        _refuse_special(path)
        folder = path.absolute().parent
        if makes_folders:
            folder = nearest_place(folder)
        if not folder.is_dir():
            missing = not folder.exists()
            raise OSError(errno.ENOENT if missing else errno.ENOTDIR, f"{folder} is no folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, f"nothing can be written into {folder}")


def nearest_place(path: Path) -> Path:
    """The path itself where there is something, if only a link to nothing, else what is nearest to it above."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _refuse_special(path: Path) -> None:
    """Raises `OSError` for a link, and for what is there and no regular file."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed")
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives each `OSError` raised inside this path: some have none, or a part of it alone."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:  # raised by hand, in words of its own
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def is_endless_link(path: Path) -> bool:
    """Whether the path cannot be followed to its end, because a link on it leads to itself."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def describe_fault(error: Exception) -> str | None:
    """What the system says of a file that cannot be used, also where it says so through a library; None for others.

    Libraries written in Rust raise exceptions of their own, the tokenizers a bare `Exception`.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is not None:
        return os.strerror(int(number[1]))
    return str(error) if isinstance(error, SafetensorError) else None
