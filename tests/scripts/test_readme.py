"""The README's blocks, run as written in a world where the quick start has been run with models of a few weights.

A comment before a block says what it takes: `<!-- needs: hub -->` or `<!-- needs: data -->`: its commands are run with
--print-config alone; `<!-- takes: minutes -->`: run in full by the slow tests, with --print-config by the others;
`<!-- needs: patience -->`: with --help alone. What a launcher starts several times is run once.
"""

import re
import runpy
import shlex
import sys
import tomllib

import pytest

from reptile_distil import Experiment, cli
from reptile_distil import __main__ as door
from reptile_distil.config.config import load_config
from tests.helpers.models import batch, bert
from tests.helpers.paths import ROOT, TINY

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[a-z]+: [a-z]+) -->\n)?^```(?P<language>bash|python|yaml)\n(?P<text>.*?)^```$", re.M | re.S
)


def blocks(language):
    """Mark and text of each block of a language."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return [(found["mark"], found["text"]) for found in BLOCK.finditer(readme) if found["language"] == language]


def commands():
    """Mark and words of each command of the bash blocks."""
    for mark, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                yield mark, shlex.split(command, comments=True)


RUNNABLE = [(mark, words) for mark, words in commands() if words and words[0] not in ("pip", "pytest")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with scripts/ and configs/, and runs/ as the quick start leaves it, but of tiny models."""
    world = tmp_path_factory.mktemp("world")
    for name in ("scripts", "configs"):
        (world / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reptile_distil.experiments.run.draw_after_run", lambda folder: None)
        Experiment.from_yaml(TINY, f"runs_dir={world}/runs").fit()
    return world


@pytest.fixture
def world(finished, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setattr(sys, "argv", ["reptile-distil"])
    return finished


def call(words):
    """The exit code of a command."""
    try:
        if words[0] == "reptile-distil" or words[:3] == ["python", "-m", "reptile_distil"]:
            return door.main(words[1:] if words[0] == "reptile-distil" else words[3:])
        if words[0] in ("torchrun", "accelerate"):
            words = ["python", *words[next(i for i, word in enumerate(words) if word.startswith("scripts/")) :]]
        assert words[0] == "python", words
        return cli.run(runpy.run_path(words[1])["main"], words[2:])
    except SystemExit as stop:
        return stop.code


def test_every_block_is_found_and_every_mark_is_known():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(blocks("bash") + blocks("python") + blocks("yaml")) == len(
        re.findall(r"^```(?:bash|python|yaml)$", readme, re.M)
    )
    marks = re.findall(r"<!-- (.*?) -->", readme)
    assert set(marks) <= {"needs: hub", "needs: data", "needs: patience", "takes: minutes"}
    assert len(marks) == sum(mark is not None for mark, _ in blocks("bash") + blocks("python") + blocks("yaml"))
    assert RUNNABLE


@pytest.mark.parametrize(("mark", "words"), RUNNABLE, ids=[" ".join(words)[:60] for _, words in RUNNABLE])
def test_each_command_runs_as_written_or_prints_its_configuration(world, capsys, mark, words):
    if "--onnx" in words:
        pytest.importorskip("onnxruntime")
    option = "--help" if mark == "needs: patience" else "--print-config"
    if mark is not None and option not in words:
        words = [*words, option]
    assert call(words) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("words", [words for mark, words in RUNNABLE if mark == "takes: minutes"], ids=" ".join)
def test_the_long_commands_run_to_their_end(finished, tmp_path, monkeypatch, capsys, words):
    for name in ("scripts", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    assert call(words) == 0, capsys.readouterr().err
    assert "| reptile  |" in capsys.readouterr().out


def test_every_extra_that_is_to_be_installed_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {name for group in re.findall(r"pip install -e '\.\[(.*?)\]'", readme) for name in group.split(",")}
    assert named
    assert named <= set(extras)


@pytest.mark.parametrize("text", [text for _, text in blocks("yaml")])
def test_each_yaml_block_is_a_configuration(tmp_path, text):
    for file in (ROOT / "configs").iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "mine.yaml").write_text(text if "extends:" in text else f"extends: quickstart.yaml\n{text}")
    load_config(tmp_path / "mine.yaml")


@pytest.mark.parametrize("text", [text for mark, text in blocks("python") if mark is None])
def test_each_python_block_runs(world, text):
    """With the names that the text around them speaks of: two models and batches."""
    if "import draw_" in text:
        pytest.importorskip("matplotlib")
    names = {"teacher": bert(4), "student": bert(2), "loader": [batch()]}
    exec(compile(text, "README.md", "exec"), names)


def test_the_tables_of_scripts_names_those_that_there_are():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `scripts/(\w+)\.py", readme, re.M))
    assert named == {path.stem for path in (ROOT / "scripts").glob("*.py")}
