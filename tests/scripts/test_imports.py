"""What a command imports before it needs it: which modules, not how many seconds they take."""

import json
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT, TINY

SECONDS_EACH = (
    *("datasets", "pandas", "pyarrow", "scipy", "sklearn", "evaluate", "matplotlib", "accelerate", "onnx"),
    *("torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp", "transformers.modeling_utils"),
)

CODE = """
import json, runpy, sys
from reptile_distil import cli
code, modules = 0, json.loads(sys.argv[1])
script = runpy.run_path(sys.argv[2])
try:
    code = cli.run(script["main"], sys.argv[3:])
except SystemExit as stop:
    code = stop.code or 0
print(json.dumps({"code": code, "loaded": [name for name in modules if sys.modules.get(name)]}))
"""


def loaded(name, *arguments, among=SECONDS_EACH):
    """Of the modules `among`, those that a process of a script has imported; its exit code and stderr."""
    script = str(ROOT / "scripts" / f"{name}.py")
    command = [sys.executable, "-c", CODE, json.dumps(among), script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    return said["loaded"], said["code"], done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The options of a finished command, and what its process has imported."""
    folder = tmp_path_factory.mktemp("finished")
    options = ("--config", TINY, f"runs_dir={folder}", "method=kd", "compare_with=[finetune]")
    return options, loaded("distil", *options)


def test_a_finished_run_is_printed_without_what_trains(finished):
    modules, code, said = loaded("distil", *finished[0])
    assert (modules, code) == ([], 0)
    assert said.count("is finished: nothing to run") == 3


def test_a_run_takes_none_that_it_does_not_need(finished):
    """Most of them come with transformers' models, and with `datasets` where rows are not in the cache."""
    modules, code, _ = finished[1]
    assert code == 0
    assert not {"evaluate", "sklearn", "onnx"} & set(modules)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("distil", ["--config", TINY, "--print-config"]),
        ("distil", ["--help"]),
        ("submit", ["--help"]),
        ("report", ["--help"]),
    ],
)
def test_what_only_prints_does_not_even_take_pytorch(name, arguments):
    modules, code, _ = loaded(name, *arguments, among=(*SECONDS_EACH, "torch", "transformers", "numpy"))
    assert (modules, code) == ([], 0)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["method=kd"], "task toy-sentence, seed 42: kd"),
        (["compare_with=[kd, finetune]", "seed=7"], "task toy-sentence, seed 7: reptile, kd, finetune"),
    ],
)
def test_the_first_line_comes_before_the_heavy_imports(options, line):
    """Here importing PyTorch ends the script: the line is there all the same."""
    code = "import sys; sys.modules['torch'] = None\n" + CODE
    script = str(ROOT / "scripts" / "distil.py")
    command = [sys.executable, "-c", code, "[]", script, "--config", str(TINY), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == line
