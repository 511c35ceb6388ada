"""The examples in docstrings, run as written, in a folder that has the project's configs/."""

import doctest
import importlib

import pytest

import reptile_distil
from tests.helpers.paths import ROOT

FINDER = doctest.DocTestFinder(exclude_empty=True)
PACKAGE = ROOT / "reptile_distil"
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in path.read_text("utf-8")
]
EXAMPLES = {test.name: test for name in MODULES for test in FINDER.find(importlib.import_module(name)) if test.examples}


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_gives_what_it_says(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner()
    runner.run(EXAMPLES[name], clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out


def test_no_example_is_skipped_and_the_librarys_face_has_some():
    for test in EXAMPLES.values():
        assert not any(doctest.SKIP in example.options for example in test.examples), test.name
    shown = {name.rpartition(".")[2] for name in EXAMPLES}
    assert shown >= {
        *("Callback", "DistillationLoss", "Experiment", "GlueMetric", "ReptileDistiller"),
        *("compare_paired", "load_config", "resolve_layer_map"),
    }
    assert set(reptile_distil.__all__) & shown
