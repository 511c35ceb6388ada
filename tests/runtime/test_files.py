"""What is written is whole, on the disk and nowhere else; what is read is a regular file."""

import errno
import os
import stat
from pathlib import Path

import pytest

from reptile_distil.runtime import files

WRITERS = {
    "text": lambda path: files.write_text(path, "new"),
    "shared": lambda path: files.write_text(path, "new", shared=True),
    "replaced": lambda path: files.replace_file(path, lambda new: new.write_text("new")),
}
SPECIAL = {
    "fifo": os.mkfifo,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "folder": os.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@every_writer
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path, write):
    path = tmp_path / "a.txt"
    for _ in range(2):
        path.write_text("old")
        write(path)
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.txt": "new"}


@every_writer
@pytest.mark.parametrize("kind", SPECIAL)
def test_a_special_file_is_not_written_to(tmp_path, write, kind):
    SPECIAL[kind](tmp_path / "a.txt")
    with pytest.raises(OSError, match=r"it is (a symbolic link|no regular file)") as caught:
        write(tmp_path / "a.txt")
    assert caught.value.filename == str(tmp_path / "a.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@every_writer
def test_a_link_is_not_written_through_neither_for_the_file_nor_for_the_temporary_one(tmp_path, write):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a.txt").symlink_to("precious")
    (tmp_path / "b.txt.new").symlink_to("precious")
    with pytest.raises(OSError, match="it is a symbolic link, which is not followed"):
        write(tmp_path / "a.txt")
    write(tmp_path / "b.txt")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "b.txt").read_text() == "new"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@every_writer
def test_a_file_that_cannot_be_written_is_as_it_was_and_named_with_its_path(tmp_path, write, failing, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        write(path)
    assert caught.value.filename == str(path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.txt": "old"}


def fill(folder):
    folder.mkdir()
    (folder / "part").write_text("new")


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    files.replace_folder(tmp_path / "model", fill)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/part"]


@pytest.mark.parametrize("at", [1, 2])
def test_a_folder_that_cannot_be_replaced_is_as_it_was(tmp_path, at, monkeypatch):
    fill(tmp_path / "model")
    renamed, rename = [], os.rename

    def fail(source, target):
        renamed.append(target)
        if len(renamed) == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        files.replace_folder(tmp_path / "model", fill)
    assert caught.value.filename == str(tmp_path / "model")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/part"]


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("read", [files.open_regular, files.read_text, files.hash_file, files.sync_file])
def test_a_special_file_is_neither_read_nor_waited_for(tmp_path, read, kind):
    SPECIAL[kind](tmp_path / "a")
    with pytest.raises(OSError, match=r"it is no regular file|No such device or address") as caught:
        read(tmp_path / "a")
    assert caught.value.filename == str(tmp_path / "a")


@pytest.mark.parametrize("content", [b"[" * 50_000, b"\xff", b"", b"1" * 5000])
def test_what_is_no_json_is_a_value_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"too many values|can't decode|Expecting value|digits"):
        files.read_json(tmp_path / "a.json")


def test_a_large_file_is_refused_unread(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    assert files.read_bytes(tmp_path / "a", max_bytes=3) == b"123"
    with pytest.raises(OSError, match="it has 3 bytes, more than 2"):
        files.read_bytes(tmp_path / "a", max_bytes=2)


@pytest.mark.parametrize(
    ("name", "finished"),
    [
        ("config.yaml.new", "config.yaml"),
        ("model.old", "model"),
        (".table.md.0123456789abcdef0123456789abcdef.new", "table.md"),
        (".old-checkpoints", "checkpoints"),
        (".new-step-00000001", "step-00000001"),
        ("config.yaml", None),
        ("model.new.txt", None),
        (".new", None),
        ("news", None),
    ],
)
def test_a_temporary_name_says_what_it_was_to_become(name, finished):
    assert files.finished_name(name) == finished


def test_each_new_folder_is_entered_on_the_disk(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(Path(f"/proc/self/fd/{fd}").readlink()), fsync(fd)))
    files.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [tmp_path, tmp_path / "a"]


@pytest.mark.parametrize("target", ["nothing", "link"])
def test_no_file_is_promised_below_a_link_to_no_folder(tmp_path, target):
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(OSError, match=f"{tmp_path}/link is no folder"):
        files.check_replaceable(tmp_path / "link" / "runs" / "table.md", makes_folders=True)


def test_a_link_is_not_added_to(tmp_path):
    files.append_text(tmp_path / "a", "1")
    files.append_text(tmp_path / "a", "2")
    assert (tmp_path / "a").read_text() == "12"
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        files.append_text(tmp_path / "b", "3")
    assert (tmp_path / "a").read_text() == "12"


def write_for_its_owner(path):
    path.write_text("new")
    path.chmod(0o600)


@pytest.fixture
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002], ids=oct, indirect=True)
def test_whatever_is_written_has_the_access_that_the_umask_leaves(tmp_path, umask):
    def fill(new):
        (new / "inside").mkdir(parents=True)
        write_for_its_owner(new / "weights")
        write_for_its_owner(new / "inside" / "weights")
        (new / "text").write_text("new")

    files.replace_folder(tmp_path / "folder", fill)
    files.replace_file(tmp_path / "weights", write_for_its_owner)
    for name, write in WRITERS.items():
        write(tmp_path / name)
    written = list(files.files_in(tmp_path))
    assert len(written) == 3 + 1 + len(WRITERS)
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in written} == dict.fromkeys(written, 0o666 & ~umask)
