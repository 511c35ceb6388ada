"""Settings are compared by what they say: a path by where it leads, anything else as it is."""

import pytest

from reptile_distil.runs.settings import find_differences


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "rows").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "rows")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("spelling", ["rows", "./rows", "rows//", "link", "~/rows", "{here}/rows", "rows/../rows"])
@pytest.mark.parametrize("key", ["data.path", "teacher.pretrained", "teacher.finetuned", "student.pretrained"])
def test_one_folder_has_many_spellings(here, key, spelling):
    assert find_differences({key: "rows"}, {key: spelling.format(here=here)}) == []
    assert find_differences({key: "rows"}, {key: spelling.format(here=here) + "2"}) == [key]
    assert find_differences({key: None}, {key: spelling.format(here=here)}) == [key]


def test_folders_in_a_list_and_files_beside_the_data_have_them_too(here):
    old = {"data.path": "rows", "data.transfer.files": ["a.csv"], "task.files.train": "t.csv", "teachers": ["x", "y"]}
    new = {
        "data.path": f"{here}",
        "data.transfer.files": ["./rows/a.csv"],
        "task.files.train": f"{here}/link/t.csv",
        "teachers": ["./x", f"{here}/y"],
    }
    assert find_differences(old, new) == ["data.path"]
    assert find_differences(old, {**new, "teachers": ["y", "x"]}) == ["data.path", "teachers"]
    assert find_differences(old, {**old, "data.path": None})[:2] == ["data.path", "data.transfer.files"]


def test_what_is_no_path_is_compared_as_it_is(here):
    assert find_differences({"task": "rows", "seed": 1}, {"task": "./rows", "seed": 1.0}) == ["task"]
    assert find_differences({"data.path": "a\0"}, {"data.path": "a"}) == ["data.path"]
