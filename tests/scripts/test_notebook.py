"""scripts/quickstart.ipynb, run cell by cell in a kernel of its own, with models of a few weights."""

import json
import re
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FILE = ROOT / "scripts" / "quickstart.ipynb"
TINY = (
    *("teacher.pretrained=toy-bert-2L-16H", "student.num_layers=1", "data.max_train_rows=70"),
    *("teacher.train.epochs=1", "train.epochs=2"),
)


@pytest.fixture(scope="module", params=["clone", pytest.param("empty folder", marks=pytest.mark.slow)])
def executed(request, tmp_path_factory):
    """The notebook after its run in a folder like a clone's scripts/, where runs lie one up, or in an empty one."""
    world = tmp_path_factory.mktemp("world")
    where = world
    if request.param == "clone":
        where = world / "scripts"
        where.mkdir()
        (world / "pyproject.toml").touch()
        for name in ("quickstart.ipynb", "evaluate.py"):  # the latter hides the package of this name from whom it can
            (where / name).symlink_to(ROOT / "scripts" / name)
    notebook = nbformat.read(FILE, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = f"overrides = {list(TINY)}"
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "HF_HOME"):
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable)))
        patch.setenv("PYTHONPATH", str(ROOT), prepend=":")
        patch.setenv("OMP_NUM_THREADS", "1")
        resources = {"metadata": {"path": str(where)}}
        nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300, resources=resources).execute()
    return notebook, world


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_the_notebook_runs_to_its_end_and_leaves_a_run_where_the_scripts_would(executed):
    notebook, world = executed
    results = json.loads((world / "runs/toy-sentence/reptile-seed42/results.json").read_text())
    assert results["num_steps"] == 10
    shown = "".join(
        output["data"]["text/html"] for output in outputs(notebook) if "text/html" in output.get("data", ())
    )
    for text in (
        "not run yet",
        "teacher at end",
        "teacher_dev_accuracy",
        f"{100 * results['score']:.2f}",
        "and 490 more rows",
    ):
        assert text in shown
    printed = "".join(output["text"] for output in outputs(notebook) if output.get("name") == "stdout")
    assert printed.count("reptile, epoch ") == 2


def test_each_run_has_one_bar_and_nothing_else_is_printed_over_and_over(executed):
    """A bar is one output that changes in place, however often it does, and shows the end in the end."""
    notebook, _ = executed
    streams = [output for output in outputs(notebook) if output.output_type == "stream"]
    printed = "".join(output.text for output in streams if output.name == "stdout")
    assert re.fullmatch(r"(?:(?:teacher|reptile), epoch \d: \S+\n)+for pictures: .*\n", printed)
    for text in (output.text for output in streams if output.name == "stderr"):  # what is said of a weak teacher
        assert "ex/s" not in text
        assert "\r" not in text
        assert "ipywidgets" not in text
    texts = [output["data"].get("text/plain", "") for output in outputs(notebook) if "data" in output]
    bars = [text for text in texts if "ex/s" in text]
    assert [re.search(r"epoch (\S+): 100%\S* (\S+) ", text).groups() for text in bars] == [
        ("1/1", "70/70"),
        ("2/2", "140/140"),
    ]


class Shell:
    """What the first cell asks of IPython."""

    def __init__(self):
        self.commands = []

    def run_line_magic(self, name, line):
        self.commands.append(f"{name} {line}")


@pytest.mark.parametrize(
    ("present", "installed"),
    [
        (["reptile_distil-0.1.0-py3-none-any.whl"], "reptile_distil-0.1.0-py3-none-any.whl"),
        (["reptile_distil/pyproject.toml", "reptile_distil/reptile_distil/__init__.py"], "reptile_distil"),
        (["../pyproject.toml", "../reptile_distil/__init__.py", "quickstart.ipynb"], ".."),
        ([], None),
    ],
)
def test_the_first_cell_installs_what_lies_there_where_the_package_is_missing(
    tmp_path, monkeypatch, present, installed
):
    from IPython.core.inputtransformer2 import TransformerManager

    folder = tmp_path / "folder"
    folder.mkdir()
    for name in present:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cell = next(cell for cell in nbformat.read(FILE, as_version=4).cells if cell.cell_type == "code")
    shell = Shell()
    names = {"get_ipython": lambda: shell}
    code = TransformerManager().transform_cell(cell.source)
    if installed is None:
        with pytest.raises(FileNotFoundError, match="put the wheel of reptile_distil, or a clone, in this folder"):
            exec(code, names)
        return
    exec(code, names)
    assert shell.commands == ['pip install --quiet "{source}"']
    assert Path.cwd() == (tmp_path if installed == ".." else folder)
    assert names["source"] == f"{(folder / installed).resolve()}[plots]"


def test_the_notebook_is_kept_small_and_without_outputs():
    notebook = json.loads(FILE.read_text(encoding="utf-8"))
    assert FILE.stat().st_size < 10_000
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
