"""Checkpoints on disk: whole or not at all, and nothing is trusted that is not as it was written."""

import hashlib
import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import torch

from reptile_distil.errors import CheckpointError, RunError
from reptile_distil.runs.checkpoints import Checkpoints
from reptile_distil.runtime.files import copy_files

TENSORS = {"student/weight": torch.arange(6.0).reshape(2, 3), "random/cpu": torch.tensor([1, 255], dtype=torch.uint8)}
STATE = {"step": 1, "learning rate": 0.1 + 0.2}
FILES = ["best/config.json", "best/model.safetensors", "manifest.json", "state.json", "tensors.safetensors"]


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


@pytest.fixture
def best(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def saved(checkpoints, best):
    """The folder of a checkpoint."""
    checkpoints.save("step-00000001", TENSORS, STATE, best=best)
    return checkpoints.path / "step-00000001"


def seal(folder):
    """A manifest of whatever is in the folder, as somebody would make who wants it trusted."""
    files = {
        file.relative_to(folder).as_posix(): {
            "size": len(file.read_bytes()),
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in folder.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


def test_what_was_saved_is_read_back_bit_for_bit(checkpoints, saved):
    checkpoint = checkpoints.open("step-00000001")
    tensors = checkpoint.read_tensors()
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert tensors["random/cpu"].dtype == torch.uint8
    assert checkpoint.read_state() == STATE
    assert (checkpoint.best / "model.safetensors").read_bytes() == b"weights"


def test_a_checkpoint_holds_these_files_and_the_sums_of_them(saved):
    assert sorted(file.relative_to(saved).as_posix() for file in saved.rglob("*") if file.is_file()) == FILES
    manifest = json.loads((saved / "manifest.json").read_text())["files"]
    weights = hashlib.sha256(b"weights").hexdigest()
    assert manifest["best/model.safetensors"] == {"size": 7, "sha256": weights}
    assert sorted([*manifest, "manifest.json"]) == FILES


def test_damage_to_the_best_model_or_to_the_metrics_leaves_a_checkpoint_as_it_was(checkpoints, best, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(b"{}\n")
    checkpoints.save("step-00000001", TENSORS, STATE, best=best, metrics=metrics)
    for file in (best / "model.safetensors", metrics):
        with file.open("r+b") as stream:
            stream.write(b"?")
    checkpoint = checkpoints.open("step-00000001")
    assert (checkpoint.best / "model.safetensors").read_bytes() == b"weights"
    assert checkpoint.read_metrics() == b"{}\n"


def test_the_newest_two_are_kept_and_an_evaluated_step_is_newer_than_the_same_step(checkpoints):
    for name in ("step-00000009", "step-00000010", "step-00000010-evaluated", "step-00000011"):
        checkpoints.save(name, TENSORS, STATE)
    assert checkpoints.names() == ["step-00000011", "step-00000010-evaluated"]
    assert sorted(path.name for path in checkpoints.path.iterdir()) == sorted(checkpoints.names())


def test_an_old_checkpoint_goes_only_when_the_new_one_is_there(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save("step-00000001", TENSORS, STATE)
    seen = []
    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **o: (seen.append(checkpoints.names()), remove(path, **o)))
    checkpoints.save("step-00000002", TENSORS, STATE)
    assert seen == [["step-00000002"]]


def test_everything_is_on_the_disk_before_the_checkpoint_gets_its_name(checkpoints, best, monkeypatch):
    synced, rename = [], os.rename
    real_fsync = os.fsync

    def fsync(descriptor):
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()).partition("step-00000001.new")[2])
        real_fsync(descriptor)

    def renamed(source, target):
        synced.append("renamed")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    checkpoints.save("step-00000001", TENSORS, STATE, best=best)
    before, after = synced[: synced.index("renamed")], synced[synced.index("renamed") + 1 :]
    assert {f"/{name}" for name in FILES} | {"", "/best"} == set(before)
    assert after == [""]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(checkpoints, saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        checkpoints.open(saved.name)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_noticed(checkpoints, saved, name):
    content = (saved / name).read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        (saved / name).write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            checkpoints.open(saved.name)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_noticed(checkpoints, saved, name):
    content = (saved / name).read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1
        (saved / name).write_bytes(flipped)
        with pytest.raises(CheckpointError):
            checkpoints.open(saved.name)


@pytest.mark.parametrize("name", ["extra.bin", "best/extra.bin", "best/deep/extra.bin"])
def test_a_file_that_is_not_in_the_manifest_is_refused(checkpoints, saved, name):
    (saved / name).parent.mkdir(exist_ok=True)
    (saved / name).write_text("x")
    with pytest.raises(CheckpointError, match=f"{name} is not in its manifest"):
        checkpoints.open(saved.name)


@pytest.mark.parametrize(
    "name", ["../../secret", "/etc/hostname", "best/../../../secret", "best/.hidden", "best//x", "code.py", "", "best"]
)
def test_a_manifest_with_a_path_out_of_the_folder_or_another_name_is_refused(checkpoints, saved, tmp_path, name):
    (tmp_path / "secret").write_text("x")
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"][name] = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="wrongly or not at all"):
        checkpoints.open(saved.name)


@pytest.mark.parametrize("left_out", ["tensors.safetensors", "state.json"])
def test_a_manifest_that_leaves_a_file_out_does_not_free_it_from_the_check(checkpoints, saved, left_out):
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest["files"][left_out]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        checkpoints.open(saved.name)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "[]",
        '{"format": 2, "files": {}}',
        '{"format": 1}',
        "[" * 100_000,
        '{"format": 1, "files": {"a": 1}}',
    ],
)
def test_a_manifest_that_is_none_is_refused(checkpoints, saved, content):
    (saved / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError):
        checkpoints.open(saved.name)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json", "best/config.json", "best"])
def test_a_link_is_refused_though_what_it_points_to_has_the_right_content(checkpoints, saved, tmp_path, name):
    (saved / name).rename(tmp_path / "outside")
    (saved / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match="symbolic link"):
        checkpoints.open(saved.name)


def test_a_checkpoint_or_a_folder_of_them_that_is_a_link_is_refused(checkpoints, saved, tmp_path):
    (checkpoints.path / "step-00000002").symlink_to(saved)
    with pytest.raises(CheckpointError, match="symbolic link"):
        checkpoints.open("step-00000002")
    (tmp_path / "other").symlink_to(checkpoints.path)
    other = Checkpoints(tmp_path / "other")
    for use in (other.names, other.remove_all):
        with pytest.raises(RunError, match="is a symbolic link"):
            use()
    assert saved.exists()


def test_a_file_or_a_pipe_in_a_checkpoints_place_is_refused(checkpoints, saved):
    (checkpoints.path / "step-00000002").write_text("x")
    (saved / "state.json").unlink()
    os.mkfifo(saved / "state.json")
    for name in ("step-00000001", "step-00000002"):
        with pytest.raises(CheckpointError):
            checkpoints.open(name)


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_where_tensors_are_expected_is_refused_and_not_run(checkpoints, saved, tmp_path):
    torch.save(Trap(tmp_path / "trapped"), saved / "tensors.safetensors")
    seal(saved)
    checkpoint = checkpoints.open(saved.name)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        checkpoint.read_tensors()
    (saved / "state.json").write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    seal(saved)
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        checkpoints.open(saved.name).read_state()
    assert not (tmp_path / "trapped").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "trapped")))  # the trap works
    assert (tmp_path / "trapped").exists()


def test_links_in_the_best_model_are_not_followed(tmp_path, best):
    (best / "vocab.txt").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="symbolic link"):
        copy_files(best, tmp_path / "copy")


def test_a_full_disk_is_one_sentence_and_leaves_the_checkpoint_before_as_it_was(checkpoints, best):
    checkpoints.save("step-00000001", TENSORS, STATE, best=best)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"step-00000002: .*: File too large; step-00000001 is intact") as error:
            checkpoints.save("step-00000002", {"x": torch.zeros(1000)}, STATE, best=best)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert [path.name for path in checkpoints.path.iterdir()] == ["step-00000001"]
    assert checkpoints.open("step-00000001").read_state() == STATE
    checkpoints.save("step-00000002", {"x": torch.zeros(1000)}, STATE, best=best)
    assert checkpoints.names() == ["step-00000002", "step-00000001"]


@pytest.mark.parametrize(("failing", "number"), [("fsync", 28), ("fsync", 30), ("rename", 122), ("rename", 13)])
def test_whatever_write_fails_nothing_is_left_of_it(checkpoints, best, monkeypatch, failing, number):
    checkpoints.save("step-00000001", TENSORS, STATE, best=best)
    monkeypatch.setattr(os, failing, lambda *_: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    with pytest.raises(RunError, match=f"cannot be written: {os.strerror(number)}; step-00000001 is intact"):
        checkpoints.save("step-00000002", TENSORS, STATE, best=best)
    assert [path.name for path in checkpoints.path.iterdir()] == ["step-00000001"]


def test_what_unfinished_writes_and_removals_left_is_cleared_and_newer_checkpoints_forgotten(checkpoints):
    for name in ("step-00000001", "step-00000002"):
        checkpoints.save(name, TENSORS, STATE)
    for name in ("step-00000003.new", "step-00000000.old", ".new-step-00000004", ".old-step-00000001"):
        (checkpoints.path / name / "best").mkdir(parents=True)
    checkpoints.forget_after("step-00000001")
    assert [path.name for path in checkpoints.path.iterdir()] == ["step-00000001"]


def test_a_removal_cut_short_leaves_nothing_that_looks_like_a_checkpoint(checkpoints, saved, monkeypatch):
    def dies(path, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.forget_after("step-00000000")
    assert checkpoints.names() == []


def test_removing_all_leaves_no_folder_also_where_an_earlier_removal_was_cut_short(checkpoints, saved, tmp_path):
    (tmp_path / "checkpoints.old" / "step-00000001").mkdir(parents=True)
    checkpoints.remove_all()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "checkpoints.old").mkdir()
    checkpoints.remove_all()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
