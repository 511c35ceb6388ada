"""Whatever stands in a configuration: it is a `Config` that is read back as itself, or one sentence says why not."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from reptile_distil.config.config import Config, load_config
from reptile_distil.config.messages import describe
from reptile_distil.errors import ConfigError
from tests.helpers.fuzzing import assert_one_sentence, examples

BASE = """\
task: rte
method: reptile
compare_with: [kd]
seed: 3
data: {path: glue, max_length: 64, max_train_rows: null, check_rows: true}
teacher:
  pretrained: some/model
  label_names: [entailment, not_entailment]
  train: &recipe {epochs: 2, batch_size: 16, lr: 5e-5, patience: 2}
student: {init: teacher_layers, num_layers: 2, teacher_layers: [0, 1]}
train: *recipe
loss: {alpha: 0.5, temperature: 5, regression: mse}
reptile: {update: adamw, mu: 1e-4, layer_map: [0, [1, 2]], inner_lr: null}
"""
OWN_TASK = {"name": "own", "text": ["a", "b"], "labels": ["no", "yes"], "metrics": ["f1"], "files": {"train": "t.csv"}}
KEYS = list(Config.model_fields) + [
    f"{section}.{name}"
    for section in ("data", "train", "teacher", "student", "loss", "reptile")
    for name in Config.model_fields[section].annotation.model_fields
]
KEYS += ["teacher.train.lr", "task.name", "task.text", "task.labels", "task.metrics", "task.files", "task.files.dev"]
# Near misses, words that pydantic uses, words that YAML uses, and what is no word at all.
ODD_KEYS = [
    "trian.lr",
    "train.lrr",
    "int",
    "str",
    "a b",
    "",
    ".",
    "train.",
    ".lr",
    "train..lr",
    "own task",
    "task.own task",
]
ODD_KEYS += [
    "extends",
    "<<",
    "=",
    "~",
    "é",
    "\u2028",
    "a\nb",
    "\x00",
    "train.lr.x",
    "task.files.x",
    "student.0",
    "k" * 3000,
]
ODD_YAML = [
    "!!bool x",
    "!!int ''",
    "!!int x",
    "!!float x",
    "!!timestamp x",
    "!!map ab",
    "!!map [a, b]",
    "!!map [[a, b]]",
    "!!set {a}",
    "!!omap [a: 1]",
    "!!pairs [a: 1]",
    "!!binary é",
    "!!str {a: b}",
    "!!seq x",
    "!own x",
    "!!python/name:os.system",
    "!!python/object/apply:os.system ['touch executed']",
    "!!python/object/new:os.system ['touch executed']",
    "0x" + "f" * 5000,
    "9" * 5000,
    "1" + "0" * 400,
    "1e400",
    "-1e400",
    ".nan",
    "-.inf",
    "1:30:20",
    "2001-01-01",
    "2001-99-99",
    "0o17",
    "010",
    "1_0",
    "٣",
    "&a [*a]",
    "&a {b: *a}",
    "*nowhere",
    "[" * 200 + "]" * 200,
    "{" * 50,
    '"\\0"',
    '"\\ud800"',
    '"a\\nb"',
    '"\\e[31m"',
    "'1e5'",
    "'yes'",
    "'null'",
    "'~'",
    "'<<'",
    "'='",
    "'0x10'",
    "' a '",
    "'# a'",
    "'a: b'",
    "'" + "ab " * 700 + "'",
    "[]",
    "{}",
    "~",
    "''",
    "<<",
    "=",
    "{<<: 3}",
    "{<<: [1]}",
    "? a",
    "- b",
    "|\n  a\n  b",
    "{a: 1, a: 2}",
    "{1: 2}",
    "{[a]: 2}",
    "{? : }",
    "[a, b",
    "'",
    '"',
    "%",
    "@",
    "`",
    "\t",
    "a: b: c",
    "1e",
    "e5",
    "no",
    "ON",
]
ODD_LINES = [*(f"train: {text}\n" for text in ODD_YAML), *(f"extends: {text}\n" for text in ODD_YAML)]
ODD_LINES += [
    "extends: run.yaml\n",
    "extends: other.yaml\n",
    "extends: /nowhere.yaml\n",
    "extends: .\n",
    "extends: loop.yaml\n",
    "extends: /dev/null\n",
    "extends: /dev/zero\n",
    "extends: " + "x" * 5000 + "\n",
    'extends: "\\0"\n',
    "task: cola\n",
    "---\n",
    "...\n",
    "%YAML 9.9\n",
    "\ufeff",
    "'a b': 1\n",
    "1: 2\n",
    "null: 1\n",
    "? {a: b}\n: c\n",
    "<<: *recipe\n",
    "<<: 3\n",
    "a0: &a0 {x: 1, y: 2}\n"
    + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}, z: *a{i - 1}}}\n" for i in range(1, 30)),
    "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30)),
    "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 30)),
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, 10**400]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, 1e-320, 1e308]),
    st.text(max_size=12),
    st.sampled_from(
        ["rte", "own", "kd", "1e5", "yes", "null", "2001-01-01", "0x1F", "\ud800", "\x00", "a\nb", "x" * 3000]
    ),
    st.dates(),
    st.binary(max_size=4),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(scalars, inner, max_size=4), max_leaves=8
) | st.just(OWN_TASK)
keys = st.sampled_from(KEYS) | st.sampled_from(ODD_KEYS) | st.text(max_size=8)


def put(tree, key, value):
    """Sets a dotted key, whatever lies in the way."""
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[last] = value


@st.composite
def mutated_trees(draw):
    """The base with a few keys set to anything."""
    tree = yaml.safe_load(BASE.replace("5e-5", "5.0e-5").replace("1e-4", "1.0e-4"))
    for key, value in draw(st.lists(st.tuples(keys, values), max_size=3)):
        put(tree, key, value)
    for key in draw(st.lists(st.sampled_from(sorted(tree)), max_size=1)):
        tree.pop(key, None)
    return yaml.dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


@st.composite
def mutated_texts(draw):
    """The base with lines put in, bytes changed, or its end cut off."""
    lines = BASE.splitlines(keepends=True)
    for line in draw(st.lists(st.sampled_from(ODD_LINES) | st.text(max_size=20), max_size=2)):
        lines.insert(draw(st.integers(0, len(lines))), line)
    content = bytearray("".join(lines).encode("utf-8", "surrogatepass"))
    for position, byte in draw(st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=2)):
        content[position % len(content)] = byte
    return bytes(content[: draw(st.just(len(content)) | st.integers(0, len(content)))])


files = st.one_of(mutated_trees(), mutated_texts(), st.binary(max_size=40))
overrides = st.lists(
    st.one_of(
        st.builds(lambda key, value: f"{key}={value}", keys, st.sampled_from(ODD_YAML)),
        st.builds(lambda key, value: f"{key}={yaml.dump(value)}", keys, values),
        st.text(max_size=12),
        st.sampled_from(["", "=", "==", "a", "a==b", "seed=1=2", "seed: 3", "seed.x=1", "task.name=x", "--seed=1"]),
    ),
    max_size=3,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text("extends: run.yaml\n")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    return tmp_path


def check(folder, content, changes):
    path, again = folder / "run.yaml", folder / "again.yaml"
    path.write_bytes(content)
    try:
        config = load_config(path, changes)
    except ConfigError as error:
        assert_one_sentence(error, ".yaml", "override", "command line", "/dev/", str(folder), "xxxxx", str(Path.home()))
    else:
        for render in (Config.to_yaml, describe):
            again.write_text(render(config), encoding="utf-8")
            assert load_config(again) == config
    assert not (folder / "executed").exists()


@given(files, overrides)
@examples(500)
@example(BASE.encode(), [])
def test_every_file_and_override_is_a_configuration_or_one_sentence(folder, content, changes):
    check(folder, content, changes)


@pytest.mark.parametrize("text", ODD_YAML)
def test_every_odd_value_of_every_kind_of_key_is_a_configuration_or_one_sentence(folder, text):
    kinds = ("task", "task.files", "seed", "data", "data.path", "train.lr", "compare_with", "reptile.layer_map")
    for key in kinds:
        check(folder, BASE.encode(), [f"{key}={text}"])


@pytest.mark.parametrize("line", ODD_LINES)
def test_every_odd_line_at_either_end_is_a_configuration_or_one_sentence(folder, line):
    check(folder, line.encode() + BASE.encode(), [])
    check(folder, BASE.encode() + line.encode(), [])


@pytest.mark.parametrize("key", ODD_KEYS)
def test_every_odd_key_is_one_sentence(folder, key):
    (folder / "run.yaml").write_text(BASE)
    with pytest.raises(ConfigError) as caught:
        load_config(folder / "run.yaml", [f"{key}=1"])
    assert_one_sentence(caught.value, "command line", "override", "run.yaml: the key 'task.")


@pytest.mark.slow
@given(files, overrides)
@examples(10_000)
def test_ten_thousand_files_and_overrides_are_configurations_or_one_sentence(folder, content, changes):
    check(folder, content, changes)
