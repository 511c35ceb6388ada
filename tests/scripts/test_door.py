"""`python -m reptile_distil COMMAND`: the scripts behind one door."""

import os
import subprocess
import sys
import tomllib

import pytest

from reptile_distil import __main__ as door
from tests.helpers.paths import ROOT, TINY


@pytest.fixture(autouse=True)
def own_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/reptile-distil"])


def test_the_help_lists_every_script_with_what_it_does(capsys):
    with pytest.raises(SystemExit) as stop:
        door.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for script in (ROOT / "scripts").glob("*.py"):
        says = script.read_text().splitlines()[0].strip('"')
        assert f"\n{script.stem:<10} {says}\n" in shown


@pytest.mark.smoke
def test_a_command_does_what_its_script_does(tmp_path, capsys):
    assert door.main(["finetune", "--config", str(TINY), f"runs_dir={tmp_path}"]) == 0
    assert "| teacher |" in capsys.readouterr().out
    assert (tmp_path / "toy-sentence/teacher-seed42/results.json").exists()
    assert sys.argv[:3] == ["/somewhere/bin/reptile-distil finetune", "--config", str(TINY)]


def test_a_commands_own_help_is_called_by_its_name(capsys):
    with pytest.raises(SystemExit):
        door.main(["distil", "--help"])
    assert capsys.readouterr().out.startswith("usage: reptile-distil distil [-h] --config CONFIG")


def test_a_fault_in_a_command_is_one_sentence_and_code_2(capsys):
    assert door.main(["distil", "--config", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err == "error: nowhere.yaml: no such file\n"


@pytest.mark.parametrize("arguments", [[], ["distill"]])
def test_no_command_and_an_unknown_one_name_those_there_are(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        door.main(arguments)
    assert stop.value.code == 2
    assert "distil" in capsys.readouterr().err


def test_as_a_process_it_exits_with_the_commands_code(tmp_path):
    command = [sys.executable, "-m", "reptile_distil", "evaluate", "--config", str(TINY), "--model", "./none"]
    path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ./none: no such folder")


def test_an_installed_package_carries_scripts_configurations_and_the_console_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"reptile-distil": "reptile_distil.__main__:main"}
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["reptile_distil*"]
    assert (ROOT / "reptile_distil" / "scripts").resolve() == ROOT / "scripts"
    assert (ROOT / "reptile_distil" / "configs").resolve() == ROOT / "configs"
