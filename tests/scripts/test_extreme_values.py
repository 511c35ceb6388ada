"""Values that nobody means: a run, or one sentence; and a model card that stays a model card."""

import json
import re
import shutil

import pytest
import yaml

from reptile_distil import cli
from reptile_distil.config.sections import OWN_SECTIONS
from tests.helpers.paths import TINY

DISTIL = ("distil", "--config", TINY, "data.cache_dir=false", "runs_dir=runs", "train.max_steps=2")
EXTREMES = ("1e200", "1e308", "1e-320", "5e-324", "-0.0", ".inf", "-.inf", ".nan")
OPTIONAL = ("data.validation_fraction", "reptile.inner_lr", "metadistil.assumed_lr")
NEEDED = {
    "reptile.held_out_fraction": ("reptile.inner_batch=held_out", "reptile.share_forward=false"),
    "metadistil.assumed_lr": ("metadistil.assumed_optimizer=adamw",),
}


def floats(values, prefix=""):
    """Dotted keys of a configuration's floats."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from floats(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield prefix + key


@pytest.fixture(scope="module")
def keys(script):
    """Dotted keys of all floats that a configuration may have."""
    done = script(*DISTIL, "--print-config")
    found = [*floats(yaml.safe_load(re.sub(r": (\d+)e-", r": \1.0e-", done.out))), *OPTIONAL]
    return sorted(set(found))


def extreme(key, value):
    """Overrides for a run of the method that the key concerns."""
    section = key.partition(".")[0]
    method = section if section in OWN_SECTIONS else "kd"
    alone = ["train.micro_batch_size=null"] if method == "metadistil" else []
    return [f"method={method}", *alone, *NEEDED.get(key, ()), f"{key}={value}"]


def try_all(script, folder, cases):
    """Each run ends, or is refused in a sentence that names the key; the faults are told all at once."""
    wrong = []
    for number, (key, value) in enumerate(cases):
        # The teacher of the last one is of use to the next, unless it is the teacher that changes.
        place = [f"runs_dir=teacher{number}"] if key.startswith(("teacher", "data")) else []
        done = script(*DISTIL, "--overwrite", *place, *extreme(key, value), cwd=folder, timeout=60)
        try:
            done.assert_done_or_refused()
        except AssertionError as error:
            wrong.append(f"{key}={value}: {str(error)[-250:]}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(cases)}", *wrong])


def test_the_floats_of_a_configuration_are_found(keys):
    assert {"train.lr", "teacher.train.lr", "loss.temperature", "reptile.mu", "checkpoint.every_minutes"} <= set(keys)


@pytest.mark.parametrize("value", ["1e200", "1e-320"])
def test_a_loss_with_an_extreme_setting_is_a_run_or_a_sentence(script, keys, tmp_path, value):
    try_all(script, tmp_path, [(key, value) for key in keys if key.startswith(("loss.", "metadistil."))])


@pytest.mark.slow
@pytest.mark.parametrize("value", EXTREMES)
def test_any_float_at_an_extreme_is_a_run_or_a_sentence(script, keys, tmp_path, value):
    try_all(script, tmp_path, [(key, value) for key in keys])


BOMBS = {
    "lists": "[" * 50_000,
    "lists that end": "a: " + "[" * 20_000 + "]" * 20_000,
    "mappings": "{" * 50_000,
    "block lists": "- " * 25_000,
    "block mappings": "".join(" " * depth + "a:\n" for depth in range(300)),
    "keys": "? " * 25_000,
    "anchored lists": "&a [" * 12_000,
    "anchors": "a: " + "&a " * 16_000,
    "aliases": "a: &a [x]\nb: [" + "*a, " * 12_000 + "]",
    "tags": "a: " + "!t " * 16_000,
    "quotes": '"' * 50_001,
    "a long word": "a: " + "x" * 50_000,
    "percent": "%" * 50_000,
    "documents": "---\n" * 12_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_fifty_kilobytes_of_one_sign_are_refused_at_once(script, tmp_path, name):
    (tmp_path / "bomb.yaml").write_text(BOMBS[name])
    done = script("distil", "--config", "bomb.yaml", cwd=tmp_path)
    done.assert_refused("bomb.yaml")
    assert done.cpu_seconds < 0.5


@pytest.mark.parametrize("name", ["lists", "mappings", "anchored lists", "keys"])
def test_fifty_kilobytes_of_one_sign_on_the_command_line_are_refused_at_once(script, tmp_path, name):
    done = script("distil", "--config", TINY, f"task={BOMBS[name]}", cwd=tmp_path)
    done.assert_refused("task")
    assert done.cpu_seconds < 0.5


@pytest.mark.parametrize("name", ["lists", "mappings", "anchored lists"])
def test_fifty_kilobytes_of_one_sign_in_a_run_folder_are_refused_at_once(script, tmp_path, name):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "results.json").write_text("{}")
    (run / "config.yaml").write_text(BOMBS[name])
    done = script("report", "--model", "run", cwd=tmp_path)
    done.assert_refused("config.yaml")
    assert done.cpu_seconds < 0.5


NAMES = ["yes | no", "`x`", "<script>alert(1)</script>", "a\\|b", "![x](http://x.y/z.png)", "--- | ---"]


@pytest.fixture(scope="module")
def odd_run(script, tmp_path_factory):
    """A folder with a finished run of a task whose labels, columns and files have odd names."""
    folder = tmp_path_factory.mktemp("odd")
    for file in ("tr|ain.csv", "dev.csv"):
        rows = [f'the film was {i % 2},"{NAMES[i % len(NAMES)]}"\n' for i in range(24)]
        (folder / file).write_text("te|xt,label\n" + "".join(rows))
    files = {"train": "tr|ain.csv", "dev": "dev.csv"}
    task = {"name": "odd", "text": ["te|xt"], "labels": NAMES, "metrics": ["accuracy"], "files": files}
    done = script(
        *DISTIL, "method=finetune", f"task={json.dumps(task)}", "data.path=.", "data.max_train_rows=null", cwd=folder
    )
    assert done.code == 0, done.err
    return folder


def card_of(script, odd_run, tmp_path, change=lambda results: None):
    """The model card of a copy of the run whose results have been changed."""
    shutil.copytree(odd_run, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "runs/odd/finetune-seed42/results.json"
    results = json.loads(file.read_text())
    change(results)
    file.write_text(json.dumps(results))
    options = ("--seconds", "0", "--lengths", "4", "--batch-sizes", "1")
    done = script("report", "--model", file.parent, *options, cwd=tmp_path)
    if done.code != 0:
        done.assert_refused("finetune-seed42")  # its results.json, or that they are not those of its config.yaml
        return ""
    return (file.parent / "model" / "README.md").read_text()


def num_cells(line):
    """Cells of a table's row; a `\\|` is none of its bars."""
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) - 1


def assert_is_a_sound_card(card):
    """Each line of a table has as many cells as its header, and what is outside of code has no HTML or image."""
    tables = re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE)
    for table in tables:
        lines = table.splitlines()
        assert {num_cells(line) for line in lines} == {num_cells(lines[0])}, table
        assert re.fullmatch(r"[|:-]+", lines[1]), table
    prose = re.sub(r"```.*?```|(`+)(?!`).*?(?<!`)\1(?!`)", "", card.split("\n---\n", 1)[-1], flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<script", prose)
    assert not re.search(r"(?<!\\)!\[", prose)


def test_odd_names_of_a_task_break_no_table_of_the_model_card(script, odd_run, tmp_path):
    card = card_of(script, odd_run, tmp_path)
    assert card
    assert_is_a_sound_card(card)


ODD_RESULTS = {
    "a bar in a split": lambda r: r.update(scores={"de|v": {"accuracy": 0.5}}),
    "a line end in a split": lambda r: r.update(scores={"de\nv": {"accuracy": 0.5}}),
    "HTML in a metric": lambda r: r.update(scores={"dev": {"<script>": 0.5}}),
    "a bar in a key": lambda r: r["decisive"].update({"a|b": 1}),
    "a line end in a value": lambda r: r["decisive"].update({"data.path": "x\n\n# y"}),
    "backticks in a value": lambda r: r["decisive"].update({"data.max_length": "``` | x"}),
    "HTML in the device": lambda r: r.update(device="<script>alert(1)</script>"),
    "a line end in the method": lambda r: r.update(method="kd\n\n| a | b |\n|---|"),
}


@pytest.mark.parametrize("what", ODD_RESULTS)
def test_odd_texts_in_results_break_no_table_of_the_model_card(script, odd_run, tmp_path, what):
    assert_is_a_sound_card(card_of(script, odd_run, tmp_path, ODD_RESULTS[what]))


def test_the_check_of_a_card_sees_a_broken_table():
    assert num_cells(r"| a | b \| c |") == 2
    assert num_cells("| a | b | c |") == 3
    with pytest.raises(AssertionError):
        assert_is_a_sound_card("| a | b |\n|---|---|\n| x | y | z |\n")
    with pytest.raises(AssertionError):
        assert_is_a_sound_card("a <script> b\n")


OUT_OF_MEMORY = [
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: operation failed due to a previous error during capture\ncaused by CUDA error: out of memory",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "NCCL error: unhandled cuda error; Last error: Cuda failure 2 'out of memory'",
    "MPS backend out of memory (MPS allocated: 8.00 GB)",
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 4611686018427387904 bytes.",
    "CUDA driver error: out of memory",
]


@pytest.mark.parametrize("message", OUT_OF_MEMORY)
def test_out_of_memory_is_said_as_such_in_all_its_shapes(capsys, message):
    def main(_):
        raise RuntimeError(message)

    assert cli.run(main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory")


def test_an_error_of_the_accelerator_that_is_no_lack_of_memory_keeps_its_traceback():
    def main(_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        cli.run(main)
