"""The READMEs: their blocks run as written, their links lead somewhere, and what they say of the layout is so.

The blocks run in a folder where the quick start has been run with models of a few weights. A comment before a block
says what it takes: `<!-- needs: hub -->` or `<!-- needs: data -->`: its commands are run with --print-config alone;
`<!-- takes: minutes -->`: run in full by the slow tests, with --print-config by the others;
`<!-- needs: patience -->`: with --print-config where the script has it, else with --help. What a launcher starts
several times is run once. Tools that install, test or lint are not run.
"""

import re
import runpy
import shlex
import sys
import tomllib
from typing import NamedTuple

import pytest
import yaml

from reptile_distil import Experiment, cli
from reptile_distil import __main__ as door
from reptile_distil.config.config import load_config
from reptile_distil.tables.config import load_table_config
from tests.helpers.models import batch, bert
from tests.helpers.paths import ROOT, TINY

PACKAGE = ROOT / "reptile_distil"
FOLDERS = ("configs", "scripts", "reptile_distil", "tests")
PAGES = [
    ROOT / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("README.md"))),
]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
LANGUAGES = ("bash", "python", "yaml")
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[a-z]+: [a-z]+) -->\n)?^```(?P<language>bash|python|yaml)\n(?P<text>.*?)^```$", re.M | re.S
)
FENCED = re.compile(r"^ *```.*?^ *```$", re.M | re.S)
MARKS = {"needs: hub", "needs: data", "needs: patience", "takes: minutes"}
TOOLS = ("pip", "pytest", "ruff", "lint-imports", "mypy", "pre-commit", "bash")
BRIEFLY = ("--seconds", "0", "--lengths", "4", "--batch-sizes", "1")
MOST_LINES = 250
"""Of the README: it is the way in, and the other pages have the rest."""


class Block(NamedTuple):
    """A block of a page, and the mark before it."""

    page: str
    mark: str | None
    text: str


class Command(NamedTuple):
    """The words of a command in a bash block."""

    page: str
    mark: str | None
    words: list[str]

    def __str__(self):
        return f"{self.page}: {' '.join(self.words)[:60]}"


def blocks(*languages):
    """The blocks of some languages, page by page."""
    return [
        Block(page, found["mark"], found["text"])
        for page, text in TEXTS.items()
        for found in BLOCK.finditer(text)
        if found["language"] in languages
    ]


def commands():
    """Each command of the bash blocks."""
    for page, mark, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                if words := shlex.split(command, comments=True):
                    yield Command(page, mark, words)


RUNNABLE = [command for command in commands() if command.words[0] not in TOOLS]
OF_TOOLS = [command for command in commands() if command.words[0] in TOOLS]


def of_pages(found):
    """Ids for blocks: the page and the block's number there."""
    pages = [block.page for block in found]
    return [f"{page}-{pages[:place].count(page)}" for place, page in enumerate(pages)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with scripts/ and configs/, and runs/ as the quick start leaves it, but of tiny models."""
    world = tmp_path_factory.mktemp("world")
    for name in ("scripts", "configs"):
        (world / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reptile_distil.experiments.run.draw_after_run", lambda folder: None)
        for method in ("reptile", "kd"):
            Experiment.from_yaml(TINY, f"runs_dir={world}/runs", f"method={method}").fit()
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


def test_the_pages_are_those_that_the_readme_names():
    named = re.findall(r"^\| \[(\S+\.md)\]\(\1\) \|", TEXTS["README.md"], re.M)
    assert {page for page in TEXTS if page.count("/") == 1} == set(named)
    assert len(named) == 5


@pytest.mark.parametrize("page", TEXTS)
def test_every_block_is_found_and_every_mark_is_known(page):
    found = [block for block in blocks(*LANGUAGES) if block.page == page]
    fences = re.findall(r"^ *```(\w+)$", TEXTS[page], re.M)
    assert set(fences) <= {*LANGUAGES, "bibtex"}
    assert len(found) == sum(fence in LANGUAGES for fence in fences)
    marks = re.findall(r"<!-- (.*?) -->", TEXTS[page])
    assert set(marks) <= MARKS
    assert len(marks) == sum(block.mark is not None for block in found)


@pytest.mark.parametrize("page", TEXTS)
def test_no_command_hides_in_a_block_without_a_language(page):
    for block in re.findall(r"^```\n(.*?)^```$", BLOCK.sub("", TEXTS[page]), re.M | re.S):
        assert not re.search(rf"^(?:python|reptile-distil|{'|'.join(TOOLS)}) ", block, re.M), block


@pytest.mark.parametrize("command", RUNNABLE, ids=str)
def test_each_command_runs_as_written_or_prints_its_configuration(world, capsys, command):
    words = command.words
    if "--onnx" in words:
        pytest.importorskip("onnxruntime")
    option = "--help" if command.mark == "needs: patience" and "--config" not in words else "--print-config"
    if command.mark is not None and option not in words:
        words = [*words, option]
    assert call(words) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in RUNNABLE if command.mark == "takes: minutes"], ids=str)
def test_the_long_commands_run_to_their_end(finished, tmp_path, monkeypatch, capsys, command):
    for name in ("scripts", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    assert call(command.words) == 0, capsys.readouterr().err
    assert "| reptile  |" in capsys.readouterr().out


def test_the_tools_that_are_to_be_called_are_those_of_the_checks():
    """What lints, types and tests is a line of .ci/run, and markers and files that are named exist."""
    checks = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    markers = {marker.partition(":")[0] for marker in project["tool"]["pytest"]["ini_options"]["markers"]}
    for command in OF_TOOLS:
        words = command.words
        if words[0] in ("ruff", "lint-imports", "mypy") or words[:2] == ["pytest", "-n"]:
            assert f"\n{' '.join(words)}\n" in checks, command
        elif words[0] == "pytest":
            assert words[1:-1] in ([], ["-m"]), command
            assert set(words[2:]) <= markers, command
        elif words[0] == "bash":
            assert (ROOT / words[1]).is_file(), command


def test_every_extra_that_is_to_be_installed_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    groups = re.findall(r"pip install (?:-e )?'\.\[(.*?)\]'", "".join(TEXTS.values()))
    named = {name for group in groups for name in group.split(",")}
    assert named >= {"repro", "test", "plots"}
    assert named <= set(extras)


@pytest.mark.parametrize("block", blocks("yaml"), ids=of_pages(blocks("yaml")))
def test_each_yaml_block_is_a_configuration(tmp_path, block):
    for file in (ROOT / "configs").iterdir():
        (tmp_path / file.name).symlink_to(file)
    extends = "" if "extends:" in block.text else "extends: quickstart.yaml\n"
    (tmp_path / "mine.yaml").write_text(extends + block.text, encoding="utf-8")
    load = load_table_config if "\ntasks:" in block.text else load_config
    load(tmp_path / "mine.yaml")


@pytest.mark.parametrize("block", blocks("python"), ids=of_pages(blocks("python")))
def test_each_python_block_runs(world, block):
    """With the names that the text around them speaks of: two models and batches."""
    assert block.mark is None
    if "import draw_" in block.text:
        pytest.importorskip("matplotlib")
    if "onnxruntime" in block.text:
        pytest.importorskip("onnxruntime")
        student = "runs/toy-sentence/kd-seed42"
        assert call(["python", "scripts/report.py", "--model", student, "--int8", *BRIEFLY]) == 0
    names = {"teacher": bert(4), "student": bert(2), "loader": [batch()]}
    exec(compile(block.text, block.page, "exec"), names)


def test_the_table_of_scripts_names_those_that_there_are():
    named = set(re.findall(r"^\| `scripts/(\w+)\.py", TEXTS["scripts/README.md"], re.M))
    assert named == {path.stem for path in (ROOT / "scripts").glob("*.py")}


def test_the_table_of_recipes_names_those_that_there_are():
    named = {name for row in re.findall(r"^\| (`.*?) \|", TEXTS["configs/README.md"], re.M) for name in names_in(row)}
    assert {name for name in named if name.endswith(".yaml")} == {
        path.name for path in (ROOT / "configs").glob("*.yaml")
    }


def names_in(text):
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


def anchors(text):
    """What GitHub makes of the headings: letters, digits and hyphens, in small letters; a second one is numbered."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return found


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page):
    folder = (ROOT / page).parent
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", TEXTS[page])):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / page
        is_there = target.exists() and target.is_relative_to(ROOT)
        if not is_there or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", TEXTS)
def test_every_source_file_that_is_named_exists(page):
    """Paths are given from the project's root, from the page's folder, or from the package's."""
    places = (ROOT, (ROOT / page).parent, PACKAGE)
    path = re.compile(r"(?:[\w.-]+/)*[\w-]+\.py|(?:[\w.-]+/)+[\w-]+\.(?:yaml|ipynb)")
    named = [name for name in names_in(FENCED.sub("", TEXTS[page])) if path.fullmatch(name)]
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= MOST_LINES


def tree():
    """The block of the README with the folders: names at the margin are the project's, those below the package's."""
    (block,) = (block for block in FENCED.findall(TEXTS["README.md"]) if "\nreptile_distil/" in block)
    return re.findall(r"^(\w+)/ +\S", block, re.M), re.findall(r"^  (\w+)/ +\S", block, re.M)


def test_the_tree_names_the_folders_of_the_package_and_no_other():
    of_project, of_package = tree()
    assert of_project == ["configs", "scripts", "tests", "reptile_distil"]
    assert sorted(of_package) == sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py"))


def test_the_tree_is_in_the_order_in_which_folders_may_import_each_other():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = [
        contract["layers"] for contract in project["tool"]["importlinter"]["contracts"] if contract["type"] == "layers"
    ]
    _, of_package = tree()
    assert of_package == [name for layer in layers for name in re.findall(r"\w+", layer) if (PACKAGE / name).is_dir()]


def test_the_table_of_modules_names_those_that_there_are():
    rows = dict(re.findall(r"^\| `(\w+)/` \| (.*) \|$", TEXTS["reptile_distil/README.md"], re.M))
    assert rows
    for folder, row in rows.items():
        modules = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
        assert set(names_in(row)) == modules, folder


def test_continuous_integration_runs_the_one_command_on_the_oldest_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = [step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {})]
    assert [f">={version}" for version in versions] == [project["requires-python"]]
