"""Strict configuration: what is read is what was meant, or one sentence says what is wrong."""

import re
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from reptile_distil.config.config import Config, load_config
from reptile_distil.config.data_section import TransferConfig
from reptile_distil.config.messages import describe
from reptile_distil.config.own_task import OwnTaskConfig
from reptile_distil.config.sections import OWN_SECTIONS, MethodName
from reptile_distil.errors import ConfigError
from reptile_distil.tables.config import load_table_config
from tests.helpers.paths import CONFIGS

pytestmark = pytest.mark.smoke

METHODS = "'finetune', 'kd', 'reptile', 'metadistil', 'prokt', 'cotrain', 'checkpoints' or 'lgtm'"


@pytest.fixture
def write(tmp_path):
    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def minimal(write):
    return write("task: rte\n")


def test_there_are_shipped_files_to_test():
    names = {path.name for path in CONFIGS.glob("*.yaml")}
    tasks = {f"{task}.yaml" for task in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")}
    assert names >= tasks | {"base.yaml", "quickstart.yaml"}


def is_of_a_table(path):
    """Whether a file, or what it extends, describes a table."""
    values = yaml.safe_load(path.read_text())
    return "tasks" in values or ("extends" in values and is_of_a_table(path.parent / values["extends"]))


SHIPPED = sorted(CONFIGS.glob("**/*.yaml"))
TABLES = [path for path in SHIPPED if is_of_a_table(path)]
RUNS = [path for path in SHIPPED if path not in TABLES]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_every_shipped_file_loads(path):
    overrides = ["task=rte"] if path.name == "base.yaml" else []
    config = load_config(path, overrides)
    given = {"base.yaml": "rte", "own-task.yaml": "my-task", "trec.yaml": "trec"}
    assert config.task_name == given.get(path.name, config.task)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_shipped_table_loads(path):
    table = load_table_config(path)
    assert {cell.config.seed for cell in table.cells} == set(table.seeds)


def test_base_yaml_is_the_published_recipe():
    config = load_config(CONFIGS / "rte.yaml")
    assert config.teacher.pretrained == "google-bert/bert-base-uncased"
    assert config.student.pretrained == "huawei-noah/TinyBERT_General_6L_768D"
    for train in (config.train, config.teacher.train):
        assert (train.epochs, train.batch_size, train.lr, train.warmup_ratio) == (5, 32, 5e-5, 0.0)
        assert (train.weight_decay, train.adam_eps, train.max_grad_norm) == (0.0, 1e-8, 1.0)
    assert (config.loss.alpha, config.loss.temperature, config.data.max_length, config.seed) == (0.5, 5.0, 128, 42)
    assert (config.reptile.update, config.reptile.mu, config.reptile.layer_map) == ("adamw", 5e-5, "skip")
    assert (config.train.adamw, config.teacher.train.adamw) == ("transformers4", "transformers4")
    assert config.reptile.inner_eps is None


@pytest.mark.parametrize(
    ("text", "value"), [("5e-5", 5e-5), ("1E3", 1000.0), ("3e-4", 3e-4), ("1e+0", 1.0), (".5", 0.5), ("2", 2.0)]
)
def test_5e_5_is_a_number(write, minimal, text, value):
    assert load_config(write(f"task: rte\ntrain:\n  lr: {text}\n")).train.lr == value
    assert load_config(minimal, [f"train.lr={text}"]).train.lr == value


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "null-ish", "1e", "e5"])
def test_words_stay_words(minimal, word):
    assert load_config(minimal, [f"data.path={word}"]).data.path == word


def test_an_extending_file_wins_over_its_base_and_an_override_over_both(write):
    write("task: rte\nseed: 1\ntrain:\n  lr: 1e-3\n  epochs: 7\n", "base.yaml")
    path = write("extends: base.yaml\nseed: 2\ntrain:\n  lr: 2e-3\n")
    config = load_config(path, ["train.lr=3e-3", "train.batch_size=8"])
    assert (config.seed, config.train.lr, config.train.epochs, config.train.batch_size) == (2, 3e-3, 7, 8)


def test_a_configuration_that_comes_with_the_package_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name, by_path = load_config("quickstart", "seed=3"), load_config(CONFIGS / "quickstart.yaml", "seed=3")
    assert by_name == by_path
    assert load_table_config("table-toy").seeds == load_table_config(CONFIGS / "table-toy.yaml").seeds


def test_a_file_of_the_users_goes_before_the_packages_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sst2.yaml").write_text("extends: base.yaml\ntask: rte\n")  # base.yaml is not here: the package's
    assert load_config("sst2.yaml").task == "rte"
    assert load_config("sst2").task == "sst2"
    (tmp_path / "base.yaml").write_text(f"extends: {CONFIGS}/base.yaml\nseed: 99\n")
    assert load_config("sst2.yaml").seed == 99


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sst", "sst: neither a YAML file here nor the name of one that comes with the package; did you mean 'sst2'?"),
        ("zzz", "zzz: neither .* package; those are ablation, base, cola, "),
        ("zzz.yaml", "^zzz.yaml: no such file$"),
        ("toy/ablation", "^toy/ablation: no such file$"),
        ("../pyproject", "^../pyproject: no such file$"),
    ],
)
def test_a_name_that_is_none_says_what_there_is(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_config(name)


def test_extends_is_relative_to_the_file_that_says_it(tmp_path, write):
    (tmp_path / "deep").mkdir()
    write("task: cola\n", "base.yaml")
    assert load_config(write("extends: ../base.yaml\n", "deep/run.yaml")).task == "cola"


def test_an_alias_is_a_copy_not_the_same_section(write):
    path = write("task: rte\nteacher:\n  train: &t {epochs: 2}\ntrain: *t\n")
    config = load_config(path, ["train.epochs=9"])
    assert (config.train.epochs, config.teacher.train.epochs) == (9, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tran.lr=1", "command line: unknown key 'tran'; did you mean 'train'?"),
        ("train.lrr=1", "command line: unknown key 'train.lrr'; did you mean 'train.lr'?"),
        ("lr=1e-3", "command line: unknown key 'lr'; did you mean 'teacher.train.lr' or 'train.lr'?"),
        ("reptile.teacher_mu=1", "unknown key 'reptile.teacher_mu'; known here: update, mu, mu_until, layer_map"),
        ("train.lr=fast", "command line: train.lr = 'fast': expected a valid number"),
        ("train.lr=nan", "train.lr = 'nan': expected a valid number"),
        ("train.lr=.nan", "train.lr = nan: expected a finite number"),
        ("train.lr=-1", "train.lr = -1: expected greater than or equal to 0"),
        ("train.epochs=1.5", "train.epochs = 1.5: expected a valid integer"),
        ("train.epochs=true", "train.epochs = True: expected a valid integer"),
        ("train.batch_size=0", "train.batch_size = 0: expected greater than or equal to 1"),
        ("train=3", "train = 3: expected a section of `key: value` lines"),
        ("loss.alpha=1.1", "loss.alpha = 1.1: expected less than or equal to 1"),
        ("loss.temperature=0", "loss.temperature = 0: expected greater than 0"),
        (
            "method=distill",
            f"method = 'distill': expected {METHODS}",
        ),
        (
            "reptile.layer_map=middle",
            "layer_map = 'middle': expected 'first', 'last', 'skip' or 'both', or expected a list",
        ),
        ("data.path=3", "data.path = 3: expected a text: in quotes, as '3'"),
        ("reptile={update: interpolate, mu: 2}", "reptile: mu = 2.0: update interpolate closes a fraction of the gap"),
        ("seed=", "seed = None: expected a valid integer"),
        ("student.init=random", "student: init: random needs student.num_layers"),
        (
            "student.num_layers=3",
            "num_layers and teacher_layers belong to init: teacher_layers, finetuned_layers or random",
        ),
        (
            "compare_with=[kd, x]",
            f"compare_with.1 = 'x': expected {METHODS}",
        ),
        ("task={name: a/b, text: [x], metrics: [accuracy], files: {train: a.csv}}", "task.name = 'a/b'"),
        ("task={name: a, txt: [x]}", "task.text' is missing"),
        (
            "task={name: a, text: [x], metrics: [acc], files: {train: a.csv}}",
            "task: acc is no metric of a regression task, which a task without label names is; its metrics are ",
        ),
        (
            "task={name: a, text: [x], metrics: [f1], files: {valid: a.csv}}",
            "'valid' is no split: expected train, dev or test",
        ),
        ("reptile.every=0", "reptile.every = 0: expected greater than or equal to 1"),
        ("reptile.inner_steps=0", "reptile.inner_steps = 0: expected greater than or equal to 1"),
        ("reptile.inner_steps=2", "reptile: share_forward: equation 1 can share equation 3's forward pass only as one"),
        ("reptile.inner_batch=held_out", "set it to false with inner_steps > 1, inner_batch: held_out or"),
        ("reptile.inner_optimizer=persistent_adamw", "reptile: share_forward: equation 1 can share"),
        (
            "reptile.held_out_fraction=0.2",
            "held_out_fraction belongs to inner_batch: held_out, but inner_batch is same",
        ),
        ("metadistil.quiz_fraction=1", "metadistil.quiz_fraction = 1: expected less than 1"),
        ("loss.soft=l1", "loss.soft = 'l1': expected 'kl' or 'mse'"),
        ("loss.patient=-1", "loss.patient = -1: expected greater than or equal to 0"),
        ("loss.layer_map=last", "loss: layer_map is only for patient, hidden and attention, which are all 0"),
        ("train.a b=1", "unknown key 'train.a b'"),
        ("int=1", "command line: unknown key 'int'"),
        ("seed=0x" + "f" * 5000, "the number has more than 20 digits"),
        ("seed=9223372036854775808", "seed = 9223372036854775808: expected less than 9223372036854775808"),
        ("data.max_length=1048577", "expected less than or equal to 1048576"),
        ("num_threads=1025", "expected less than or equal to 1024"),
        ("task={name: .., text: [x], metrics: [accuracy], files: {train: a.csv}}", "task.name = '..'"),
        ("data.path=!!bool x", "the tag 'tag:yaml.org,2002:bool' is not allowed for 'x'"),
        ("data.path=!!set {a}", "the tag 'tag:yaml.org,2002:set' is not allowed"),
        ("data.path=&a [*a]", "an alias stands within what it stands for"),
        ("data.path=" + "[" * 16 + "]" * 16, "data.path = [[["),
        ("data.path=" + "[" * 17 + "]" * 17, "more than 16 levels of values within values"),
        ("data.path=" + "[" * 9000, "more than 16 levels of values within values"),
        ('data.path="a\\nb"', r"the character '\n' is not allowed in a text"),
        (r'data.path="\0"', r"the character '\x00' is not allowed in a text"),
        (r'data.path="\ud800"', r"the character '\ud800' is not allowed in a text"),
        ("train.lr", "override 'train.lr': expected key=value"),
        ("train.lr=[", "override 'train.lr=[': not readable as YAML"),
    ],
)
def test_a_key_or_value_that_is_not_allowed_is_named(write, override, message):
    path = write("task: rte\nstudent:\n  pretrained: somewhere\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_one_override_may_stand_alone_and_a_list_of_lists_is_refused(write):
    path = write("task: rte\nstudent: {pretrained: somewhere}\n")
    assert load_config(path, "seed=7") == load_config(path, ["seed=7"])
    with pytest.raises(ConfigError, match=r"override \['seed=7'\]: expected key=value"):
        load_config(path, [["seed=7"]])


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("{pretrained: null}", "init: pretrained needs student.pretrained, a hub name or a folder"),
        (
            "{init: random, num_layers: 1, teacher_layers: [0]}",
            "teacher_layers belongs to init: teacher_layers or finetuned_layers, but init is random",
        ),
        (
            "{init: teacher_layers, num_layers: 3, teacher_layers: [0, 1]}",
            "num_layers is 3 but teacher_layers names 2 layers",
        ),
        ("{init: teacher_layers}", "init: teacher_layers needs student.num_layers"),
    ],
)
def test_a_students_start_that_contradicts_itself_is_refused(write, student, message):
    with pytest.raises(ConfigError) as error:
        load_config(write(f"task: rte\nstudent: {student}\n"))
    assert str(error.value).endswith(f"run.yaml: student: {message}")


def test_a_fault_in_a_base_file_names_that_file(write):
    write("task: rte\ntrain:\n  lr: quick\n", "base.yaml")
    with pytest.raises(ConfigError, match=r"base\.yaml: train\.lr = 'quick'"):
        load_config(write("extends: base.yaml\nseed: 1\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: rte\ntask: cola\n", "the key 'task' is given twice"),
        ("train: {lr: 1, lr: 2}\n", "the key 'lr' is given twice"),
        ("- task\n", "expected `key: value` lines, found list"),
        ("just words", "expected `key: value` lines, found str"),
        ("task: [\n", "not readable as YAML"),
        ("task: rte\nseed: [1\n", "expected ',' or ']', but got '<stream end>' in line 3, column 1"),
        ("task: {name: x, text: [t], labels: [0, 1]}", "task.labels.0 = 0: expected a text: in quotes, as '0'"),
        ("task: rte\nreptile.mu: 1\n", "in a file the keys of a section stand below it: reptile: {mu: ...}"),
        ("1: 2\n", "the key 1 is not a word"),
        ("? [a]\n: 2\n", "is not a word"),
        ("extends: [a, b]\n", "expected the name of one YAML file"),
        ("extends: run.yaml\n", "extends itself"),
        ("extends: nowhere.yaml\n", "nowhere.yaml: no such file, but /"),
        ("seed: 3\n", "the key 'task' is missing"),
        ("", "the key 'task' is missing"),
        (
            "task: !!python/object/apply:os.system ['true']\n",
            "the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        ("'': 3\ntask: rte\n", "unknown key ''"),
        ('extends: "a\\0"\n', "is not allowed in a text"),
        ("extends: loop.yaml\n", "loop.yaml: cannot be read"),
        ("extends: " + "x" * 300 + ".yaml\n", "cannot be read"),
        ("extends: /dev/zero\n", "/dev/zero: cannot be read: it is no regular file"),
    ],
)
def test_a_broken_file_is_refused_with_its_name(write, text, message):
    path = write(text)
    (path.parent / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert message in str(error.value)
    assert ".yaml" in str(error.value) or "/dev/zero" in str(error.value)


@pytest.mark.parametrize("one", ["[*a{0}, *a{0}]", "{{x: *a{0}, y: *a{0}}}", "{{<<: [*a{0}, *a{0}]}}"])
def test_a_few_lines_of_aliases_that_stand_for_billions_of_values_are_refused(write, one):
    first = "a0: &a0 {x: 1, y: 2}\n"
    text = first + "".join(f"a{level}: &a{level} {one.format(level - 1)}\n" for level in range(1, 40))
    with pytest.raises(ConfigError, match=r"more than 10000 values|more than 16 levels"):
        load_config(write(text))
    shallow = first + "a1: &a1 [" + "*a0, " * 99 + "]\na2: [" + "*a1, " * 99 + "]\n"  # 99 * 99 * 5 values
    with pytest.raises(ConfigError, match="more than 10000 values, aliases counted as what they stand for"):
        load_config(write(shallow))


def test_a_chain_of_files_without_end_is_refused(write):
    for number in range(20):
        write(f"extends: {number + 1}.yaml\n", f"{number}.yaml")
    with pytest.raises(ConfigError, match="more than 16 files extend one another"):
        load_config(write("extends: 0.yaml\n"))


def test_a_longest_chain_of_files_is_read(write):
    write("task: rte\n", "14.yaml")
    for number in range(14):
        write(f"extends: {number + 1}.yaml\n", f"{number}.yaml")
    assert load_config(write("extends: 0.yaml\n")).task == "rte"


@pytest.mark.parametrize("render", [Config.to_yaml, describe])
@pytest.mark.parametrize(
    "text", ["1e5", "5e-5", "yes", "null", "2001-01-01", "0x10", "1:30", "<<", "=", " a", "#", "a: b"]
)
def test_a_text_that_looks_like_something_else_is_printed_so_that_it_stays_a_text(write, minimal, render, text):
    config = load_config(minimal, [f"data.path='{text}'"])
    assert load_config(write(render(config), "again.yaml")).data.path == text
    assert yaml.safe_load(render(config))["data"]["path"] == text


@pytest.mark.parametrize("render", [Config.to_yaml, describe])
def test_a_long_text_is_printed_in_one_line(write, minimal, render):
    long = "a b " * 5000 + "c"
    config = load_config(minimal, [f"data.path={long}"])
    assert max(map(len, render(config).splitlines())) > 20_000
    assert load_config(write(render(config), "again.yaml")).data.path == long


def test_a_date_is_a_word(minimal):
    assert load_config(minimal, ["data.path=2001-01-01"]).data.path == "2001-01-01"


def test_a_message_is_one_line_without_control_characters_and_of_bounded_length():
    error = ConfigError("a\nb\x1b[31m\ud800" + "x" * 9000 + "the end")
    assert str(error).startswith(r"a\nb\x1b[31m\ud800xxx")
    assert str(error).endswith("xxxthe end")
    assert 1500 < len(str(error)) < 1600


def test_a_missing_or_unreadable_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("task: r\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize("render", [Config.to_yaml, describe])
def test_what_is_printed_is_read_back_as_the_same_configuration(write, render):
    task = "task={name: mine, text: [a, b], labels: [no, yes], metrics: [f1], files: {train: t.csv, dev: d.csv}}"
    changes = ["train.lr=5e-5", "reptile.layer_map=[1, [2, 3]]", "compare_with=[kd]", task]
    config = load_config(CONFIGS / "quickstart.yaml", changes)
    again = load_config(write(render(config)))
    assert again == config
    assert yaml.safe_load(render(config))["train"]["lr"] == 5e-5


def test_the_configuration_is_frozen(minimal):
    with pytest.raises(ValidationError, match="frozen"):
        load_config(minimal).train.lr = 1.0


def test_every_field_is_documented():
    def fields(section, prefix=""):
        for name, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from fields(kind, f"{prefix}{name}.")
            else:
                yield prefix + name, field.description

    undocumented = [name for name, text in [*fields(Config), *fields(OwnTaskConfig)] if not text]
    assert undocumented == []


def test_a_run_folder_may_be_named_after_the_seed(minimal):
    config = load_config(minimal, ["output_dir=here/of-{seed}", "seed=7", "student.pretrained=x"])
    assert [str(of.student_run) for of in (config, config.with_values(seed=8))] == ["here/of-7", "here/of-8"]
    assert str(config.with_values(output_dir=None).student_run) == f"runs/{config.task_name}/reptile-seed7"


def test_compare_with_and_one_output_dir_exclude_each_other(minimal):
    with pytest.raises(ConfigError, match="set runs_dir instead of output_dir"):
        load_config(minimal, ["compare_with=[kd]", "output_dir=here", "student.pretrained=x"])


@pytest.mark.parametrize("where", ["method=metadistil", "compare_with=[metadistil]"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.micro_batch_size=4",
            "train.micro_batch_size: metadistil differentiates through the whole batch at once",
        ),
        ("loss.alpha=0", "loss.alpha = 0 leaves the teacher out of the loss"),
    ],
)
def test_what_metadistil_cannot_do_is_refused_wherever_it_is_asked_for(where, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIGS / "rte.yaml", [where, override])
    load_config(CONFIGS / "rte.yaml", [override])


@pytest.mark.parametrize(
    ("overrides", "section"),
    [
        (["method=kd", "reptile.mu=0.1"], "reptile"),
        (["method=finetune", "reptile.every=2"], "reptile"),
        (["method=reptile", "metadistil.teacher_lr=0.1"], "metadistil"),
        (["method=metadistil", "reptile={move_head: false}"], "reptile"),
        (["method=kd", "prokt.beta=0.1"], "prokt"),
        (["method=prokt", "checkpoints.until=0.5"], "checkpoints"),
        (["method=reptile", "lgtm.every=2"], "lgtm"),
        (["method=prokt", "cotrain.order=teacher_first"], "cotrain"),
    ],
)
def test_an_option_of_a_method_that_is_not_run_is_refused_on_the_command_line(overrides, section):
    with pytest.raises(ConfigError, match=rf"{section}\S* has no effect on method .* method={section} or compare_with"):
        load_config(CONFIGS / "rte.yaml", overrides)
    load_config(CONFIGS / "rte.yaml", [*overrides, f"compare_with=[{section}]"])


LAYERS = ("student.init=finetuned_layers", "student.num_layers=6")


@pytest.mark.parametrize(
    ("overrides", "key", "why", "instead"),
    [
        ((*LAYERS, "student.pretrained=x"), "student.pretrained", "student.init = finetuned_layers", "student.init="),
        (
            ["student={init: random, num_layers: 2, pretrained: x}"],
            "student.pretrained",
            "student.init = random",
            "student.init=pretrained",
        ),
        (
            ["teacher.finetuned=d", "teacher.pretrained=x"],
            "teacher.pretrained",
            "teacher.finetuned = d",
            "teacher.finetuned=null",
        ),
        (
            ["teacher={finetuned: d, train: {epochs: 9}}"],
            "teacher.train.epochs",
            "teacher.finetuned = d",
            "teacher.finetuned=null",
        ),
        (
            ["teacher.finetuned=d", "teacher.keep_epochs=true"],
            "teacher.keep_epochs",
            "teacher.finetuned = d",
            "teacher.finetuned=null",
        ),
    ],
)
def test_an_option_of_another_start_is_refused_on_the_command_line(overrides, key, why, instead):
    message = re.escape(f"command line: {key} has no effect with {why}; leave it out, or give {instead}")
    with pytest.raises(ConfigError, match=f"^{message}"):
        load_config(CONFIGS / "rte.yaml", overrides)


def test_options_of_another_start_may_stand_in_a_file_and_be_cleared_on_the_command_line(write):
    path = write(f"extends: {CONFIGS / 'rte.yaml'}\nteacher: {{finetuned: d, label_names: [a, b]}}\n")
    start = ["student.init=teacher_layers", "student.num_layers=6"]
    assert load_config(path, start).student.pretrained == load_config(path).student.pretrained
    # The student starts as the pretrained teacher; the file's own may be told to be fine-tuned after all.
    config = load_config(path, [*start, "student.pretrained=null", "teacher.pretrained=x"])
    assert (config.student.pretrained, config.teacher.pretrained) == (None, "x")
    assert load_config(path, ["teacher.finetuned=null", "teacher.train.epochs=9"]).teacher.train.epochs == 9


def test_an_epsilon_is_refused_where_equation_1_divides_by_nothing(write):
    message = r"reptile: inner_eps belongs to inner_optimizer: adamw or persistent_adamw, but it is sgd$"
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIGS / "rte.yaml", ["reptile.inner_optimizer=sgd", "reptile.inner_eps=1e-8"])
    for optimizer in ("adamw", "persistent_adamw"):
        overrides = [f"reptile.inner_optimizer={optimizer}", "reptile.inner_eps=1e-8", "reptile.share_forward=false"]
        assert load_config(CONFIGS / "rte.yaml", overrides).reptile.inner_eps == 1e-8
    # The recipe's own epsilon is no choice of anyone's, and a printed configuration is read back.
    config = load_config(CONFIGS / "rte.yaml", ["reptile.inner_optimizer=sgd"])
    assert load_config(write(config.to_yaml())) == config
    assert load_config(write("task: rte\nstudent: {pretrained: x}\n")).reptile.inner_eps == config.reptile.inner_eps


ABLATION = yaml.safe_load((CONFIGS / "ablation.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ABLATION["variants"])
def test_each_ablation_differs_from_its_method_in_the_keys_it_names_and_no_other(name):
    variant = dict(ABLATION["variants"][name])
    method = variant.pop("method")
    named = {f"{section}.{key}": value for section, values in variant.items() for key, value in values.items()}
    plain = load_config(CONFIGS / "rte.yaml", [f"method={method}"]).defining_settings(method)
    overrides = [f"{key}={value}".replace("True", "true").replace("False", "false") for key, value in named.items()]
    changed = load_config(CONFIGS / "rte.yaml", [f"method={method}", *overrides]).defining_settings(method)
    assert named
    assert {key for key in plain if plain[key] != changed[key]} == set(named)


def test_the_ablations_ask_about_every_switch():
    """Every row is in the table, and between them they turn every key that issues from the step's equations."""
    assert set(ABLATION["methods"]) == {*get_args(MethodName), *ABLATION["variants"]}
    turned = {
        f"{section}.{key}"
        for variant in ABLATION["variants"].values()
        for section, values in variant.items()
        if section != "method"
        for key in values
    }
    assert turned == {
        "loss.alpha",
        "loss.temperature",
        "loss.soft",
        "loss.patient",
        "loss.hidden",
        "reptile.update",
        "reptile.mu",
        "reptile.mu_until",
        "reptile.task_lr",
        "reptile.pull",
        "reptile.layer_map",
        "reptile.inner_optimizer",
        "reptile.inner_steps",
        "reptile.inner_batch",
        "reptile.share_forward",
        "reptile.every",
        "reptile.move_head",
        "reptile.move_embeddings",
    }


def test_metadistils_defaults_are_the_published_ones():
    metadistil = load_config(CONFIGS / "rte.yaml", ["method=metadistil"]).metadistil
    assert (metadistil.teacher_lr, metadistil.assumed_optimizer) == (1e-5, "sgd")
    assert (metadistil.assumed_lr, metadistil.quiz_batch_size) == (
        None,
        None,
    )  # those of train, 5e-5 and 32 in base.yaml


@pytest.mark.parametrize(
    ("role", "override", "matters"),
    [
        ("finetune", "loss.alpha=0.9", False),
        ("finetune", "reptile.mu=0.1", False),
        ("finetune", "teacher.train.lr=0.1", False),
        ("finetune", "train.lr=0.1", True),
        ("finetune", "data.cache_dir=x", False),
        ("reptile", "data.packing=true", False),
        ("finetune", "data.max_length=64", True),
        ("finetune", "student.pretrained=other", True),
        ("kd", "loss.alpha=0.9", True),
        ("kd", "reptile.mu=0.1", False),
        ("kd", "teacher.finetuned=other", True),
        ("reptile", "reptile.mu=0.1", True),
        ("reptile", "metadistil.teacher_lr=0.1", False),
        ("reptile", "loss.hidden=0.1", True),
        ("metadistil", "metadistil.teacher_lr=0.1", True),
        ("metadistil", "metadistil.quiz_fraction=0.2", True),
        ("metadistil", "reptile.mu=0.1", False),
        ("metadistil", "loss.soft=mse", True),
        ("metadistil", "teacher.finetuned=other", True),
        ("prokt", "prokt.beta=0.1", True),
        ("prokt", "cotrain.teacher_lr=0.1", False),
        ("cotrain", "cotrain.order=teacher_first", True),
        ("cotrain", "loss.temperature=2", True),
        ("checkpoints", "checkpoints.until=0.5", True),
        ("lgtm", "lgtm.influence=10", True),
        ("lgtm", "metadistil.quiz_fraction=0.2", False),
        ("checkpoints", "teacher.keep_epochs=false", False),
        ("teacher", "teacher.keep_epochs=true", False),
        ("reptile", "prokt.order=teacher_first", False),
        ("kd", "loss.patient=0.1", True),
        ("finetune", "loss.patient=0.1", False),
        ("reptile", "reptile.every=2", True),
        ("reptile", "reptile.move_head=false", True),
        ("reptile", "reptile.share_forward=false", True),
        ("reptile", "train.micro_batch_size=4", False),
        ("reptile", "train.log_every=3", False),
        ("reptile", "distributed.shard=true", False),
        ("reptile", "precision=tf32", True),
        ("reptile", "compute.compile=true", False),
        ("reptile", "compute.cuda_graphs=true", False),
        ("reptile", "compute.attention=eager", False),
        ("reptile", "runs_dir=elsewhere", False),
        ("reptile", "checkpoint.every_steps=7", False),
        ("reptile", "seed=1", True),
        ("teacher", "train.lr=0.1", False),
        ("teacher", "teacher.train.lr=0.1", True),
        ("teacher", "teacher.label_names=[a, b]", False),
        ("teacher", "task=cola", True),
    ],
)
def test_decisive_values_are_those_that_change_a_roles_result(role, override, matters):
    section = override.partition(".")[0]
    beside = [f"compare_with=[{section}]"] if section in OWN_SECTIONS else []
    before = load_config(CONFIGS / "rte.yaml").defining_settings(role)
    after = load_config(CONFIGS / "rte.yaml", [override, *beside]).defining_settings(role)
    assert (before != after) == matters


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["data.packing=true", "compute.compile=true"], "command line: data.packing cannot be compiled"),
        (["loss.extra_rows=1"], "command line: loss.extra_rows belongs to method kd alone"),
        (["teachers=[a, b]"], "command line: teachers belongs to method kd alone"),
    ],
)
def test_a_fault_of_several_keys_is_said_where_one_of_them_was_given(overrides, where):
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIGS / "rte.yaml", overrides)
    assert str(caught.value).startswith(where)


def test_values_of_a_section_are_replaced_one_by_one():
    config = load_config(CONFIGS / "rte.yaml", ["train.epochs=7"])
    changed = config.with_values(train={"lr": 1e-3}, seed=3)
    assert (changed.train.lr, changed.train.epochs, changed.seed) == (1e-3, 7, 3)
    assert config.with_values(train=changed.train, seed=3) == changed
    with pytest.raises(ConfigError, match="unknown key 'sead'; did you mean 'seed'"):
        config.with_values(sead=3)
    with pytest.raises(ConfigError, match="seed = 'x': expected"):
        config.with_values(seed="x")


def test_values_of_a_section_in_a_section_are_replaced_one_by_one():
    config = load_config(CONFIGS / "rte.yaml", ["teacher.train.epochs=7", "data.transfer={fraction: 0.5, seed: 3}"])
    changed = config.with_values(teacher={"train": {"lr": 1e-3}}, data={"transfer": {"ratio": 2.0}})
    assert (changed.teacher.train.lr, changed.teacher.train.epochs) == (1e-3, 7)
    assert changed.data.transfer == TransferConfig(fraction=0.5, seed=3, ratio=2.0)
    assert config.with_values(data={"transfer": TransferConfig()}).data.transfer == TransferConfig()
    with pytest.raises(ConfigError, match=r"unknown key 'teacher.train.lrr'; did you mean 'teacher.train.lr'"):
        config.with_values(teacher={"train": {"lrr": 1e-3}})


def test_options_of_ones_own_and_a_task_are_replaced_as_a_whole():
    config = load_config(
        CONFIGS / "rte.yaml", ["method=a.b:Own", "method_options={x: 1}", "loss={name: a:B, options: {y: 2}}"]
    )
    changed = config.with_values(method_options={"z": 3}, loss={"options": {"z": 3}})
    assert (changed.method_options, changed.loss.options, changed.loss.name) == ({"z": 3}, {"z": 3}, "a:B")
    own = {"name": "mine", "text": ["x"], "metrics": ["pearson"], "files": {"train": "t.csv"}}
    first = config.with_values(task={**own, "text": ["a", "b"], "quoting": "none"})
    assert first.with_values(task=own).task == OwnTaskConfig.model_validate(own)


OWN = "{name: mine, text: [text], labels: [a, b], metrics: [accuracy], files: {train: t.csv, dev: d.csv, test: e.csv}}"


def test_a_file_of_a_split_can_be_left_out(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {CONFIGS / 'base.yaml'}\ntask: {OWN}\n")
    assert load_config(path, ["task.files.dev=null"]).task.files == {"train": "t.csv", "test": "e.csv"}
    child = tmp_path / "child.yaml"
    child.write_text("extends: mine.yaml\ntask: {files: {dev: null, test: null}}\n")
    assert load_config(child).task.files == {"train": "t.csv"}
    assert load_config(child, ["task.name=other"]).task.files == {"train": "t.csv"}


def test_a_task_on_the_command_line_under_another_name_is_described_anew(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {CONFIGS / 'base.yaml'}\ntask: {OWN}\n")
    other = "task={name: other, text: [x], labels: [c, d], metrics: [f1], files: {train: o.csv}}"
    assert load_config(path, [other]).task.files == {"train": "o.csv"}
    assert load_config(path, [other.replace("other", "mine")]).task.files["dev"] == "d.csv"


@pytest.mark.parametrize("name", ["table-toy", "table", "minilm/table", "evidence/comparison"])
def test_a_tables_file_is_known_as_one(name):
    with pytest.raises(ConfigError, match=r"\w+ is a table's: scripts/table\.py runs such a file"):
        load_config(CONFIGS / f"{name}.yaml")


def test_a_fault_of_several_keys_of_a_file_is_the_files(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {CONFIGS / 'rte.yaml'}\ndata: {{packing: true}}\ncompute: {{compile: true}}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: data\.packing cannot be compiled"):
        load_config(path, ["seed=3"])


def test_a_student_made_of_the_teachers_layers_depends_on_the_pretrained_teacher():
    changes = ["student.init=teacher_layers", "student.num_layers=3"]
    before = load_config(CONFIGS / "rte.yaml", changes).defining_settings("finetune")
    after = load_config(CONFIGS / "rte.yaml", [*changes, "teacher.pretrained=x"]).defining_settings("finetune")
    assert before != after


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.packing=true", "compute.attention=sdpa"], "leave compute.attention at auto"),
        (["data.packing=true", "compute.compile=true"], "data.packing cannot be compiled"),
        (["distributed.shard=true", "compute.compile=true"], "distributed.shard cannot be compiled"),
    ],
)
def test_ways_to_compute_that_do_not_go_together_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIGS / "rte.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.packing=true", "loss.patient=0.1"], "data.packing gives no hidden states: set it to false, or"),
        (["data.packing=true", "loss.hidden=0.1", "method=kd"], "data.packing gives no hidden states"),
        (
            ["kd.keep_logits=true", "loss.hidden=0.1", "method=kd"],
            "logits alone, not what loss.hidden compare",
        ),
        (["kd.keep_logits=true", "loss.patient=0.1", "compare_with=[kd]"], "set it to null or false, or them to 0"),
        (["kd.keep_logits=true", "loss.patient=1", "loss.hidden=1", "method=kd"], "loss.patient and loss.hidden"),
        (["distributed.shard=true", "method=lgtm"], "lgtm cannot be computed with distributed.shard: set it to false"),
        (["compare_with=[lgtm]", "loss.alpha=0"], "so lgtm could teach it nothing"),
        (["data.packing=true", "method=metadistil"], "metadistil cannot be computed with data.packing: set it to"),
        (["compute.compile=true", "method=metadistil"], "metadistil cannot be computed with compute.compile"),
        (
            ["distributed.shard=true", "compare_with=[metadistil]"],
            "metadistil cannot be computed with distributed.shard",
        ),
        (
            ["distributed.shard=true", "reptile.inner_steps=2", "reptile.share_forward=false"],
            "distributed.shard cannot be used with reptile.inner_steps > 1 or persistent_adamw",
        ),
        (
            ["distributed.shard=true", "reptile.inner_optimizer=persistent_adamw", "reptile.share_forward=false"],
            "distributed.shard cannot be used with reptile.inner_steps > 1 or persistent_adamw",
        ),
    ],
)
def test_a_way_to_compute_that_the_method_cannot_take_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_config(CONFIGS / "rte.yaml", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.packing=true", "loss.hidden=0.1", "method=finetune"],
        ["distributed.shard=true", "reptile.inner_batch=held_out", "reptile.share_forward=false"],
        ["distributed.shard=true", "loss.patient=0.1"],
        ["compute.compile=true", "loss.patient=0.1"],
    ],
)
def test_a_way_to_compute_that_the_method_can_take_is_not_refused(overrides):
    load_config(CONFIGS / "rte.yaml", overrides)


@pytest.mark.parametrize("given", ["labels: ['a,b', c], multi_label: true", "label: ['a,b', c]"])
def test_a_label_that_contains_the_separator_of_labels_is_refused_with_the_remedy(tmp_path, given):
    path, files = tmp_path / "mine.yaml", "files: {train: t.jsonl, dev: d.jsonl}"
    path.write_text(f"extends: base.yaml\ntask: {{name: mine, text: [text], {given}, metrics: [f1_macro], {files}}}\n")
    with pytest.raises(
        ConfigError, match=r"mine\.yaml: .*the label 'a,b' contains ',', .*another task.label_separator$"
    ):
        load_config(path)
    assert load_config(path, ["task.label_separator=;"]).task.label_separator == ";"
