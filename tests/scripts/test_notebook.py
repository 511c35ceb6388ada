"""scripts/quickstart.ipynb, run cell by cell in a kernel of its own, with models of a few weights."""

import json

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


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after its run, started in a folder like the project's scripts/."""
    world = tmp_path_factory.mktemp("world")
    (world / "configs").symlink_to(ROOT / "configs")
    (world / "scripts").mkdir()
    for name in ("quickstart.ipynb", "evaluate.py"):  # the latter hides the package of this name from whom it can
        (world / "scripts" / name).symlink_to(ROOT / "scripts" / name)
    notebook = nbformat.read(FILE, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = f"overrides = {list(TINY)}"
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "HF_HOME"):
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable)))
        patch.setenv("PYTHONPATH", str(ROOT), prepend=":")
        patch.setenv("OMP_NUM_THREADS", "1")
        where = {"metadata": {"path": str(world / "scripts")}}
        nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300, resources=where).execute()
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
        f"{results['score']:.4f}",
        "and 490 more rows",
    ):
        assert text in shown
    printed = "".join(output["text"] for output in outputs(notebook) if output.get("name") == "stdout")
    assert printed.count("reptile, epoch ") == 2


def test_in_a_notebook_without_widgets_there_is_a_bar_and_no_warning(executed):
    notebook, _ = executed
    errors = "".join(output["text"] for output in outputs(notebook) if output.get("name") == "stderr")
    assert "ex/s" in errors
    assert "arning" not in errors
    assert "ipywidgets" not in errors


def test_the_notebook_is_kept_small_and_without_outputs():
    notebook = json.loads(FILE.read_text(encoding="utf-8"))
    assert FILE.stat().st_size < 10_000
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
