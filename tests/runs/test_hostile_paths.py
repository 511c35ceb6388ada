"""Whatever lies at a path that a run writes or a user names: nothing outside is changed, nothing hangs."""

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from reptile_distil import ReptileDistilError
from tests.helpers.disk_faults import COMPILER, Fault
from tests.helpers.paths import CONFIGS, TINY, TINY_TABLE

RUN = "toy-sentence/finetune-seed42"
DISTIL = ("distil", "--config", TINY, "method=finetune", "data.cache_dir=false", "runs_dir=runs")
EVALUATE = ("evaluate", "--model", f"runs/{RUN}/model", "--split", "dev", "data.cache_dir=false")
REPORT = ("report", "--model", f"runs/{RUN}/model", "--seconds", "0", "--lengths", "4", "--batch-sizes", "1")
SUBMIT = ("submit", "--runs", f"runs/{RUN}", "--fill-missing", "--output", "submission.zip")
TABLE = ("table", "--config", TINY_TABLE, "tasks=[toy-sentence]", "methods=[finetune]")
TABLE = (*TABLE, "seeds=[42]", "runs_dir=runs", "data.cache_dir=false")
BENCHMARK = ("benchmark", "--lengths", "4", "--depths", "1:1", "--widths", "64", "--batch-sizes", "1", "--batches", "1")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def finished_runs(script, tmp_path_factory):
    """The runs folder of a finished fine-tuning."""
    folder = tmp_path_factory.mktemp("finished")
    script(*DISTIL, cwd=folder).assert_done_or_refused()
    return folder / "runs"


@pytest.fixture
def run(finished_runs, tmp_path):
    """The folder of a finished run, a copy of this test's own, in `tmp_path`/runs."""
    shutil.copytree(finished_runs, tmp_path / "runs")
    return tmp_path / "runs" / RUN


@pytest.fixture
def own_task(tmp_path):
    """Overrides for a user's own task, whose files lie in `tmp_path`."""
    rows = [f"the film was {'good' if i % 2 else 'bad'},{'yes' if i % 2 else 'no'}\n" for i in range(20)]
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(rows))
    (tmp_path / "dev.csv").write_text("text,label\n" + "".join(rows[:4]))
    files = "{train: train.csv, dev: dev.csv}"
    task = f"task={{name: films, text: [text], labels: [no, yes], metrics: [accuracy], files: {files}}}"
    return [task, "data.path=.", "data.max_train_rows=null"]


def put(path, content="half"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


LEFTOVERS = [
    ["config.yaml.new"],
    ["config.yaml.new", "environment.json.new"],
    ["model.new/.tmpAbCd12", "model.new/config.json"],
    ["checkpoints/.new-step-00000003/tensors.safetensors"],
    [".old-checkpoints/step-00000003/state.json"],
    ["results.json.new", "predictions_dev.json.new"],
]


@pytest.mark.parametrize("names", LEFTOVERS, ids=" ".join)
def test_what_a_write_cut_short_has_left_is_no_strangers_file(script, tmp_path, names):
    for name in names:
        put(tmp_path / "runs" / RUN / name)
    script(*DISTIL, cwd=tmp_path).assert_done_or_refused()
    left = {path.name for path in (tmp_path / "runs" / RUN).iterdir()}
    expected = "config.yaml environment.json metrics.jsonl model predictions_dev.json results.json"
    assert left - {"curves.png"} == set(expected.split())


@pytest.mark.parametrize("name", ["letter.txt", "letter.new", "model.new.txt", "photos/config.yaml.new"])
def test_beside_what_a_write_cut_short_has_left_a_strangers_file_is_left_alone(script, tmp_path, name):
    folder = tmp_path / "runs" / RUN
    put(folder / "config.yaml.new")
    put(folder / name, "dear")
    script(*DISTIL, cwd=tmp_path).assert_refused("is not empty and holds no run")
    assert (folder / name).read_text() == "dear"


def outside_of(folder, *, is_folder):
    """A file or a folder with a file in it, outside of what is written, and what is in the file."""
    outside = folder / "outside"
    put(outside / "precious" if is_folder else outside, "precious")
    return outside, outside / "precious" if is_folder else outside


THROUGH_LINKS = [
    (REPORT, f"runs/{RUN}/model/README.md", False),
    ((*REPORT, "--onnx"), f"runs/{RUN}/model/onnx/model.onnx", False),
    ((*REPORT, "--onnx"), f"runs/{RUN}/model/onnx", True),
    ((*REPORT, "--int8"), f"runs/{RUN}/model/onnx/model_int8.onnx", False),
    ((*EVALUATE, "--predictions", "said.tsv"), "said.tsv", False),
    ((*EVALUATE, "--predictions", "said.tsv"), "said.tsv.new", False),
    ((*TABLE, "--only-table"), "runs/table.md", False),
    ((*TABLE, "--only-table"), "runs/table-epochs.csv", False),
    (TABLE, "runs/toy-sentence/.finetune-seed42.lock", False),
    ((*TABLE, "train.lr=1e30"), "runs/toy-sentence/failed-finetune-seed42.txt", False),
    pytest.param((*BENCHMARK, "--json", "times.json"), "times.json", False, marks=pytest.mark.slow),
    ((*DISTIL, "--overwrite"), "runs/toy-sentence/.finetune-seed42.lock", False),
    ((*DISTIL, "--overwrite"), f"runs/{RUN}/curves.png", False),
    ((*DISTIL, "--overwrite"), f"runs/{RUN}/config.yaml.new", False),
    ((*DISTIL, "--overwrite"), f"runs/{RUN}/model.new", True),
]


@pytest.mark.parametrize(
    ("command", "name", "is_folder"),
    THROUGH_LINKS,
    ids=lambda value: value[0] if isinstance(value, tuple) else Path(value).name if isinstance(value, str) else "",
)
def test_nothing_is_written_through_a_link(script, run, tmp_path, command, name, is_folder):
    outside, precious = outside_of(tmp_path, is_folder=is_folder)
    remove(tmp_path / name)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(outside)
    done = script(*command, cwd=tmp_path)
    assert "Traceback" not in done.err
    assert done.code in (0, 1, 2)
    assert precious.read_text() == "precious"
    assert not is_folder or [path.name for path in outside.iterdir()] == ["precious"]


@pytest.mark.parametrize("name", ["submission.zip", "submission.zip.new"])
def test_no_submission_is_written_through_a_link(tmp_path, name):
    from reptile_distil.export.submission import FILES, write_submission

    (tmp_path / "outside").write_text("precious")
    (tmp_path / name).symlink_to("outside")
    rows = {file: [next(iter(of.spelling.values()), "1.000")] * of.num_rows for file, of in FILES.items()}
    with contextlib.suppress(ReptileDistilError):
        write_submission(tmp_path / "submission.zip", rows)
    assert (tmp_path / "outside").read_text() == "precious"


WRITERS = {
    "model/README.md": REPORT,
    "model/onnx/model.onnx": (*REPORT, "--onnx"),
    "said.tsv": (*EVALUATE, "--predictions", f"runs/{RUN}/said.tsv"),
    "times.json": (*BENCHMARK, "--json", f"runs/{RUN}/times.json"),
}


@needs_compiler
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "times" in name else []) for name in WRITERS]
)
@pytest.mark.parametrize(("operation", "number"), [("write", errno.ENOSPC), ("open", errno.EACCES)])
def test_where_a_file_cannot_be_written_the_old_one_stays_and_nothing_is_left(
    script, run, tmp_path, name, operation, number
):
    put(run / name, "old")
    before = set(run.rglob("*"))
    fault = Fault(run, operation, at=1, errno=number, stays=True)
    script(*WRITERS[name], cwd=tmp_path, fault=fault).assert_refused(f"runs/{RUN}/{name}")
    assert (run / name).read_text() == "old"
    assert set(run.rglob("*")) == before


KINDS = {
    "fifo": lambda path: os.mkfifo(path),
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "device": lambda path: path.symlink_to("/dev/zero"),  # without an end
}
SECONDS = 10
every_kind = pytest.mark.parametrize(
    "kind", ["fifo", pytest.param("socket", marks=pytest.mark.slow), pytest.param("device", marks=pytest.mark.slow)]
)


@every_kind
@pytest.mark.parametrize(
    "name", ["results.json", "config.yaml", "environment.json", "metrics.jsonl", "predictions_dev.json"]
)
@pytest.mark.parametrize("command", [DISTIL, EVALUATE, REPORT, SUBMIT], ids=lambda command: command[0])
def test_a_special_file_in_a_run_folder_is_waited_for_by_no_script(script, run, tmp_path, kind, name, command):
    (run / name).unlink()
    KINDS[kind](run / name)
    script(*command, cwd=tmp_path, timeout=SECONDS).assert_done_or_refused()


@every_kind
@pytest.mark.parametrize("name", ["train.csv", "dev.csv", "tiny.yaml", "base.yaml"])
def test_a_special_file_in_place_of_data_or_configuration_is_refused(script, own_task, tmp_path, kind, name):
    (tmp_path / "tiny.yaml").write_text(TINY.read_text().replace("../../configs/base.yaml", "base.yaml"))
    shutil.copy(CONFIGS / "base.yaml", tmp_path)
    (tmp_path / name).unlink()
    KINDS[kind](tmp_path / name)
    command = ("distil", "--config", "tiny.yaml", "method=finetune", "runs_dir=runs", "data.cache_dir=false", *own_task)
    script(*command, cwd=tmp_path, timeout=SECONDS).assert_refused(name)


@every_kind
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "command",
    [
        EVALUATE,
        (
            "distil",
            "--config",
            TINY,
            "method=kd",
            "data.cache_dir=false",
            "runs_dir=new",
            f"teacher.finetuned=runs/{RUN}/model",
        ),
        (
            "distil",
            "--config",
            TINY,
            "method=finetune",
            "data.cache_dir=false",
            "runs_dir=new",
            "student.num_layers=null",
            "student.init=pretrained",
            f"student.pretrained=runs/{RUN}/model",
        ),
    ],
    ids=["evaluate", "teacher", "student"],
)
def test_a_special_file_in_a_model_folder_is_refused(script, run, tmp_path, kind, name, command):
    (run / "model" / name).unlink()
    KINDS[kind](run / "model" / name)
    script(*command, cwd=tmp_path, timeout=SECONDS).assert_done_or_refused()


@pytest.mark.parametrize("kind", ["fifo", pytest.param("socket", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "command",
    [
        (*EVALUATE, "--predictions", "special"),
        (*BENCHMARK, "--json", "special"),
        ("submit", "--check", "special"),
        (*DISTIL, "--overwrite", "data.path=special"),
        (*EVALUATE[:2], "special"),
        ("report", "--model", "special"),
        ("distil", "--config", TINY, "method=finetune", "output_dir=special"),
        ("distil", "--config", TINY, "method=finetune", "runs_dir=special"),
        ("submit", "--runs", "special"),
        (*DISTIL, "data.cache_dir=special"),
    ],
    ids=lambda command: command[0],
)
def test_a_special_file_that_an_option_names_is_waited_for_by_no_script(script, run, tmp_path, kind, command):
    KINDS[kind](tmp_path / "special")
    script(*command, cwd=tmp_path, timeout=SECONDS).assert_done_or_refused()


def failing_reads(script, command, cwd, folder):
    """How the command ends where its k-th opening of a file below `folder` fails, for every k."""
    trace = cwd / "trace"
    script(*command, cwd=cwd, fault=Fault(folder, trace=trace))
    number = sum(line.startswith("read ") for line in trace.read_text().splitlines())
    assert number
    for at in range(1, number + 1):
        yield script(*command, cwd=cwd, fault=Fault(folder, "read", at=at, errno=errno.EIO))


@needs_compiler
@pytest.mark.parametrize(
    "command",
    [DISTIL, *(pytest.param(command, marks=pytest.mark.slow) for command in (EVALUATE, REPORT))],
    ids=lambda command: command[0],
)
def test_a_file_that_cannot_be_opened_is_named_with_its_path(script, run, tmp_path, command):
    for done in failing_reads(script, command, tmp_path, run):
        done.assert_done_or_refused(f"runs/{RUN}/")


@every_kind
@pytest.mark.parametrize("name", ["train.csv", "dev.csv"])
def test_a_finished_run_whose_data_became_a_special_file_is_looked_at_without_waiting(
    script, own_task, tmp_path, kind, name
):
    script(*DISTIL, *own_task, cwd=tmp_path).assert_done_or_refused()
    (tmp_path / name).unlink()
    KINDS[kind](tmp_path / name)
    script(*DISTIL, *own_task, cwd=tmp_path, timeout=SECONDS).assert_done_or_refused()


@every_kind
@pytest.mark.parametrize("name", ["vocab.txt", "model.safetensors", "pytorch_model.bin"])
def test_a_finished_run_whose_teacher_became_a_special_file_is_looked_at_without_waiting(
    script, run, tmp_path, kind, name
):
    command = ("distil", "--config", TINY, "method=kd", "data.cache_dir=false", "runs_dir=runs")
    command = (*command, f"teacher.finetuned=runs/{RUN}/model")
    script(*command, cwd=tmp_path).assert_done_or_refused()
    (run / "model" / name).unlink(missing_ok=True)
    KINDS[kind](run / "model" / name)
    script(*command, cwd=tmp_path, timeout=SECONDS).assert_done_or_refused()


@pytest.mark.parametrize("damage", [*KINDS, "deep"])
@pytest.mark.parametrize("name", ["entry.json", "lengths.npy"])
def test_a_spoilt_entry_of_the_cache_is_made_anew(script, own_task, tmp_path, damage, name):
    command = ("distil", "--config", TINY, "method=finetune", "data.cache_dir=cache", *own_task)
    assert script(*command, "runs_dir=first", cwd=tmp_path).code == 0
    for file in (tmp_path / "cache").glob(f"*/{name}"):
        file.unlink()
        if damage == "deep":
            file.write_text("[" * 50_000)
        else:
            KINDS[damage](file)
    done = script(*command, "runs_dir=second", cwd=tmp_path, timeout=SECONDS)
    assert done.code == 0, done.err
    weights = [tmp_path / runs / "films/finetune-seed42/model/model.safetensors" for runs in ("first", "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_models_files_do_not_depend_on_whether_the_tokenised_data_were_kept(script, own_task, tmp_path):
    command = ("distil", "--config", TINY, "method=finetune", "data.cache_dir=cache", *own_task)
    for runs in ("made", "kept"):
        assert script(*command, f"runs_dir={runs}", cwd=tmp_path).code == 0
    for file in (tmp_path / "made/films/finetune-seed42/model").iterdir():
        assert file.read_bytes() == (tmp_path / "kept/films/finetune-seed42/model" / file.name).read_bytes(), file
