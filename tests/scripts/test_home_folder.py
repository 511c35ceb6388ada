"""`~` is the home folder in every path of a configuration and in every option that is a path."""

import ast
import re
import runpy
import shutil

import pytest
from pydantic import BaseModel

from reptile_distil import cli
from reptile_distil.config.config import Config, load_config
from reptile_distil.config.own_task import OwnTaskConfig
from reptile_distil.config.table_sections import TableKeys
from reptile_distil.runs.folder import RunFolder
from tests.helpers.paths import ROOT, TINY


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def texts_that_are_paths(section, prefix=""):
    """Dotted keys of the texts whose description speaks of a folder, a file or a path."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from texts_that_are_paths(kind, f"{prefix}{name}.")
        elif "str" in str(kind) and re.search(r"\b([Ff]olders?|[Ff]iles?|paths?)\b", field.description):
            yield prefix + name


LIST = "[~/there]"
NOT_PATHS = {"task", "name", "task.hub", "trackers", "quoting", "label"}
KEYS = sorted({*texts_that_are_paths(Config), *texts_that_are_paths(OwnTaskConfig, "task.")} - NOT_PATHS)


def test_the_keys_that_are_paths_are_found():
    assert {"data.path", "task.files", "teacher.pretrained", "runs_dir", "output_dir", "data.cache_dir"} <= set(KEYS)


@pytest.mark.parametrize("key", [key for key in KEYS if key.rpartition(".")[2] not in NOT_PATHS])
def test_a_key_that_is_a_path_knows_the_home_folder(home, key):
    value = {"task.files": "{train: ~/there}", "teachers": LIST, "data.transfer.files": LIST}.get(key, "~/there")
    task = "task={name: mine, text: [text], labels: [a, b], metrics: [accuracy], files: {train: x.csv}}"
    needed = {"teachers": ["method=kd"], "student.pretrained": ["student.init=pretrained", "student.num_layers=null"]}
    others = [task] if key.startswith("task.") else needed.get(key, [])
    config = load_config(TINY, [*others, f"{key}={value}"])
    for part in key.split("."):
        config = getattr(config, part)
    there = f"{home}/there"
    expected = {"task.files": {"train": there}, "teachers": (there,), "data.transfer.files": (there,)}
    assert config == expected.get(key, there)


def test_a_tables_output_knows_the_home_folder(home):
    keys = TableKeys.model_validate({"tasks": ["rte"], "methods": ["kd"], "seeds": [1], "output": "~/there"})
    assert keys.output == f"{home}/there"


def test_a_name_with_a_tilde_elsewhere_or_of_no_user_stays_what_it_is(home):
    config = load_config(TINY, ["data.path=there~/x", "runs_dir=~nobody-of-this-name/x"])
    assert (config.data.path, config.runs_dir) == ("there~/x", "~nobody-of-this-name/x")


def test_a_configuration_and_what_it_extends_lie_in_the_home_folder(home, tmp_path):
    shutil.copy(ROOT / "configs/base.yaml", home / "mine.yaml")
    (tmp_path / "run.yaml").write_text("extends: ~/mine.yaml\ntask: rte\n")
    assert load_config(tmp_path / "run.yaml").task == "rte"
    assert load_config("~/mine.yaml", ["task=cola"]).task == "cola"


OPTIONS = [
    ("distil", ["--config", "~/x.yaml"]),
    ("finetune", ["--config=~/x.yaml"]),
    ("table", ["--config", "~/x.yaml"]),
    ("evaluate", ["--model", "~/x"]),
    ("evaluate", ["--model", "some/model", "--split", "dev", "--predictions", "~/x/y.tsv"]),
    ("report", ["--model", "~/x"]),
    ("submit", ["--check", "~/x.zip"]),
    ("submit", ["--runs", "~/x"]),
]


@pytest.mark.parametrize(("script", "options"), OPTIONS)
def test_an_option_that_is_a_path_knows_the_home_folder(capsys, home, script, options):
    main = runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))["main"]
    config = ["--config", str(TINY)] if script == "evaluate" else []
    assert cli.run(main, [*config, *options]) == 2
    assert f"{home}/x" in capsys.readouterr().err


def test_every_option_that_is_a_path_has_the_type_that_knows_the_home_folder():
    """Whoever adds an option that takes a path gives it the type of the others."""
    without = []
    for script in sorted((ROOT / "scripts").glob("*.py")):
        for call in ast.walk(ast.parse(script.read_text())):
            if not (isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument"):
                continue
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            says_path = re.search(r"\b(folders?|files?|zip|picture|submission)\b", words.get("help", ""))
            has_value = "action" not in words and "choices" not in words
            if says_path and has_value and words.get("type") not in ("path_option", "name_option"):
                without.append((script.stem, ast.unparse(call.args[0])))
    assert without == []


def test_a_run_that_was_made_when_the_home_folder_was_not_replaced_is_the_same_run(home, tmp_path):
    RunFolder(tmp_path).check_same("a run", {"teacher.pretrained": "~/m"}, {"teacher.pretrained": f"{home}/m"})
