"""Every number in the sentences about the study of small pretrained models can be had from the raw results."""

from statistics import fmean

import pytest

from reptile_distil.tables.config import load_table_config
from tests.helpers.measured import Measured
from tests.helpers.paths import CONFIGS
from tests.helpers.prose import IN_WORDS, not_said, prose, section, unchecked_numbers
from tests.helpers.studies import told

STUDY, START, RELEASED, ABLATION, KEEP, ADAMW, ORDER = (
    Measured(CONFIGS / "minilm" / f"{name}epochs.csv")
    for name in ("", "start-", "released-", "ablation-", "keep-", "adamw-", "order-")
)
TOY = Measured(CONFIGS / "toy/epochs.csv")
MOVING = ("reptile", "interpolate", "metadistil")
OWN_LAYERS = ("stsb", "cola", "rte")
"""The tasks whose students are made of the teacher's own layers."""
WITHOUT_COLA, WITHOUT_RTE = ("sst2", "stsb", "rte"), ("sst2", "stsb", "cola")
KEPT, UNMOVED = "keep-task-mu-1e-2", "keep-task-mu-0"
NAMES = {"sst2": "SST-2", "stsb": "STS-B", "cola": "CoLA", "rte": "RTE"}
ONE_CLASS = 52.7
SETTINGS = ["7.1 hours of one CPU core", f"where one class alone has {ONE_CLASS} %"]


def furthest_ahead(column):
    """The most that a moving teacher's students are ahead of the frozen one's on a task, with the row and the task."""
    cells = [(row, task) for row in MOVING for task in STUDY.tasks if STUDY.of(row, [task])]
    return max((STUDY.difference(row, tasks=[task], column=column), row, NAMES[task]) for row, task in cells)


def frozen_beside_finetuning(column="student"):
    return told(STUDY.against("kd", "finetune", column=column))


def without_cola(study, row):
    return told(study.against(row, tasks=WITHOUT_COLA))


def times_by_task(*rows):
    return sorted(STUDY.times(row, tasks=[task]) for row in rows for task in STUDY.tasks if STUDY.of(row, [task]))


def said_of_the_study():
    (on_dev, *of_dev), (on_validation, *of_validation) = furthest_ahead("student"), furthest_ahead("validation")
    reptile, metadistil = times_by_task("reptile", "interpolate"), times_by_task("metadistil")
    return [
        f"{STUDY.num_runs} runs (RTE's",
        f"{IN_WORDS[len(STUDY.seeds)]} seeds cannot give a p below {2 / 2 ** len(STUDY.seeds):.2g}.",
        "are `{}` on {} by dev score ({:+.1f}) and".format(*of_dev, on_dev),
        "and `{}` on {} by validation score ({:+.1f}), and".format(*of_validation, on_validation),
        f"without, they are at {without_cola(STUDY, 'reptile')} (`reptile`), {without_cola(STUDY, 'interpolate')} "
        f"(`interpolate`) and {without_cola(STUDY, 'metadistil')} (`metadistil`).",
        f"Reptile takes {reptile[0]:.1f} to {reptile[-1]:.1f} times, MetaDistil {metadistil[0]:.1f} to "
        f"{metadistil[-1]:.1f} times the training time of plain distillation.",
        f"its teacher is right on {STUDY.mean('kd', 'start', ['rte']):.1f} % of the dev rows",
    ]


def said_of_the_gap():
    left = [STUDY.logged("gap", "reptile", 1, [task]) for task in OWN_LAYERS]
    wide = [STUDY.logged("gap", "interpolate", 1, [task]) for task in OWN_LAYERS]
    fall = [STUDY.mean("reptile", column, ["stsb"]) for column in ("start", "end")]
    gap, drift = (
        {task: STUDY.logged(metric, "interpolate", 3, [task]) for task in ("stsb", "cola")}
        for metric in ("gap", "teacher_drift")
    )
    lost = {task: STUDY.lost("interpolate", [task]) for task in gap}
    steps = [STUDY.mean("interpolate", "steps", [task]) for task in ("cola", "stsb")]
    cola = {row: STUDY.mean(row, "student", ["cola"]) for row in ("reptile", "kd")}
    return [
        f"(SST-2, gap {STUDY.logged('gap', 'reptile', 1, ['sst2']):.0f} after the first epoch)",
        f"(gap {min(wide):.0f} to {max(wide):.0f} under the printed equation) most of it is closed within the first "
        f"epoch ({min(left):.1f} to {max(left):.1f} are left)",
        "On STS-B the teacher falls from {:.1f} to {:.1f}, on CoLA to ".format(*fall)
        + f"{STUDY.mean('reptile', 'end', ['cola']):.0f} in every seed",
        f"its student with it ({cola['reptile']:.1f} beside {cola['kd']:.1f} for the frozen teacher).",
        f"moves the teacher by {drift['stsb']:.2f} in all on STS-B, beside a gap of {gap['stsb']:.0f}, and costs it "
        f"{lost['stsb']:.0f} point; by {drift['cola']:.1f} beside {gap['cola']:.1f} on CoLA, where "
        f"{IN_WORDS[round(steps[0] / steps[1])]} times as many steps are taken, and costs it {lost['cola']:.0f}, and "
        f"its students are {-STUDY.difference('interpolate', tasks=['cola']):.0f} points behind.",
    ]


def said_of_metadistil():
    lost = STUDY.lost_by_task("metadistil")
    behind = {task: -STUDY.difference("metadistil", tasks=[task], column="validation") for task in WITHOUT_RTE}
    p, with_its_own = STUDY.p("metadistil"), ADAMW.p("metadistil")
    return [
        f"(it loses {min(lost):.0f} to {max(lost):.0f} points)",
        f"on the validation rows of SST-2 they are {behind['sst2']:.0f} point behind,",
        *(f"point behind, on STS-B and CoLA {behind[task]:.0f}." for task in ("stsb", "cola")),
        f"Over the {IN_WORDS[len(STUDY.of('metadistil'))]} pairs it is the one method that is behind beyond chance "
        f"({STUDY.ahead('metadistil')}, p {p:.2g} before any correction for {IN_WORDS[len(MOVING) + 1]} comparisons;",
        f"with the AdamW of its released code, {ADAMW.ahead('metadistil')}, p {with_its_own:.2g}).",
    ]


def said_of_the_start():
    ends = [START.mean("tuned-start", column) for column in ("start", "end")]
    compared = START.against("tuned-start", "kd-tuned-start")
    return [
        f"({START.logged('gap', 'tuned-start', 1):.2f} after the first epoch)",
        "leaves the teacher at work ({:.1f} → {:.1f})".format(*ends),
        f"{-compared.mean_difference:.1f} points behind in the mean (paired over {IN_WORDS[compared.n]} seeds, "
        f"{compared.low:+.1f} to {compared.high:+.1f}), at twice the time.",
        f"For the student the start is worth {START.difference('kd-tuned-start'):.0f} points",
    ]


def said_of_the_search():
    first = {row: ABLATION.mean(row, "validation") for row in ("mu-1e-2", "keep-task", KEPT)}
    kept, beside_unmoved = KEEP.against(KEPT), KEEP.against(KEPT, UNMOVED)
    return [
        "`mu-1e-2` ({:.2f}), `keep-task` ({:.2f}) and `keep-task-mu-1e-2` ({:.2f}) are ahead".format(*first.values()),
        f"before `keep-task`, {first['keep-task'] - first[KEPT]:.2f} above it, had been run",
        f"its teacher loses {KEEP.lost('mu-1e-2'):.0f} points. The teacher that is kept at its task gains "
        f"{-KEEP.lost(KEPT):.0f} points",
        f"its students are {kept.mean_difference:.1f} points above the frozen teacher's on dev ({kept.low:+.1f} to "
        f"{kept.high:+.1f}), {-KEEP.difference(KEPT, column='validation'):.1f} below on the validation rows",
        f"at {IN_WORDS[round(KEEP.times(KEPT))]} times the time. With the task step alone they are at "
        f"{KEEP.ahead(UNMOVED)}: on these {IN_WORDS[kept.n]} pairs the movement towards the student is worth "
        f"{beside_unmoved.low:.1f} to {beside_unmoved.high:.1f} points (p {beside_unmoved.p_value:.2g})",
        f"there the same two rows are at {TOY.ahead(KEPT)} and {TOY.ahead(UNMOVED)} (see",
    ]


def said_of_distillation_itself():
    return [
        f"adds nothing here to fine-tuning alone on dev, {frozen_beside_finetuning()} over "
        f"{IN_WORDS[len(STUDY.of('finetune'))]} pairs; on the validation rows, which chose the epoch, "
        f"{frozen_beside_finetuning('validation')}, and on CoLA",
    ]


def said_of_the_adamw():
    changed = [max(map(abs, since_the_adamw("kd", ["stsb"], column))) for column in ("student", "validation")]
    better = [fmean(since_the_adamw("metadistil", ["cola"], column)) for column in ("student", "validation")]
    on_dev, on_validation = (
        [study.mean("metadistil", column, ["cola"]) for study in (ADAMW, STUDY)] for column in ("student", "validation")
    )
    return [
        f"the same in every seed, on STS-B within {max(changed):.1f}.",
        *(f"on CoLA its students are {gain:.0f} points better in the mean" for gain in better),
        "on dev ({:.1f} beside {:.1f}) and on the validation rows ({:.1f} beside {:.1f}),".format(
            *on_dev, *on_validation
        ),
        f"MetaDistil is {ADAMW.behind('metadistil')} points behind the frozen teacher over the "
        f"{IN_WORDS[len(ADAMW.of('metadistil'))]} pairs, instead of {STUDY.behind('metadistil')}, no longer beyond "
        f"chance (p {ADAMW.p('metadistil'):.2g})",
        f"Without CoLA it is at {without_cola(ADAMW, 'metadistil')}.",
    ]


def since_the_adamw(row, tasks, column="student"):
    """What the AdamW of the released code changes, for each task and seed."""
    return [run[column] - STUDY.runs[task, row][seed][column] for task, seed, run in ADAMW.of(row, tasks)]


def said_of_the_order():
    both = ("interpolate", "reptile")
    within, ends = (
        max(abs(value) for row in both for value in ORDER.differences(f"{row}-student-first", row, column=column))
        for column in ("student", "end")
    )
    seconds, of_the_other = (
        sum(run["seconds"] for row in both for _, seed, run in ORDER.of(row + order) if seed in (42, 43))
        for order in ("-student-first", "")
    )
    best = max(ORDER.difference(row + order) for row in both for order in ("", "-student-first"))
    return [
        f"the same under the printed equation, within {within:.1f} points under the released update, in every seed; "
        f"the teachers end within {ends:.1f} points of each other.",
        f"beyond chance ({best:+.1f} at most), and the released update takes {ORDER.lost('reptile'):.0f} points",
        f"took {seconds / of_the_other:.2f} of the other order's seconds",
    ]


def said_of_the_readme():
    return [
        *said_of_the_study(),
        *said_of_the_gap(),
        *said_of_metadistil(),
        *said_of_the_start(),
        *said_of_the_search(),
        *said_of_distillation_itself(),
        *said_of_the_adamw(),
        *said_of_the_order(),
    ]


def said_of_the_summary():
    reptile, interpolate, metadistil = (told(STUDY.against(row)) for row in MOVING)
    pairs = {row: IN_WORDS[len(STUDY.of(row))] for row in ("finetune", "metadistil")}
    cola = {row: STUDY.mean(row, "student", ["cola"]) for row in ("reptile", "kd", "finetune")}
    falls = [STUDY.mean("reptile", column, [task]) for task in ("cola", "stsb") for column in ("start", "end")]
    kept = told(KEEP.against(KEPT)).partition(" p ")[0]
    return [
        f"3-layer students, {IN_WORDS[len(STUDY.seeds)]} seeds.",
        f"on dev: {frozen_beside_finetuning()} over {pairs['finetune']} pairs.",
        f"(on one task by {furthest_ahead('student')[0]:.1f} at most): the released update is at {reptile}, the "
        f"printed equation at {interpolate}, MetaDistil over {pairs['metadistil']} pairs at {metadistil}, with its "
        f"released code's AdamW at {told(ADAMW.against('metadistil'))}.",
        f"without, they are at {without_cola(STUDY, 'reptile')}, {without_cola(STUDY, 'interpolate')}, "
        f"{without_cola(STUDY, 'metadistil')} and {without_cola(ADAMW, 'metadistil')}.",
        "from MCC {:.0f} to {:.0f} within the first epoch".format(*falls[:2]),
        f"({cola['reptile']:.1f}; frozen teacher {cola['kd']:.1f}, fine-tuning {cola['finetune']:.1f});",
        "on STS-B the teacher falls from {:.0f} to {:.0f}.".format(*falls[2:]),
        f"Reptile costs about {STUDY.times('reptile'):.0f} times, MetaDistil about "
        f"{fmean(times_by_task('metadistil')):.0f} times the time of plain distillation.",
        f"on the task) is at {kept}, level with fine-tuning.",
        f"worth {START.difference('kd-tuned-start'):.0f} points to the student under a frozen teacher.",
    ]


def text_of_the_summary():
    """The bullet of this study and what follows the bullets: the one between them is of another study."""
    text = section((CONFIGS / "README.md").read_text(encoding="utf-8"), "Does a moving teacher pay?")
    bullet, _, below = text.partition("- [minilm]")[2].partition("- [evidence]")
    return prose(bullet + below.partition("\n\n")[2])


PAGES = {
    "configs/minilm/README.md": (prose((CONFIGS / "minilm/README.md").read_text(encoding="utf-8")), said_of_the_readme),
    "configs/README.md": (text_of_the_summary(), said_of_the_summary),
}


@pytest.mark.parametrize(("text", "said"), PAGES.values(), ids=PAGES)
def test_the_sentences_have_the_numbers_of_the_raw_results(text, said):
    assert not_said(text, said()) == []


@pytest.mark.parametrize(("text", "said"), PAGES.values(), ids=PAGES)
def test_every_number_with_a_decimal_point_is_in_a_sentence_that_is_recomputed(text, said):
    assert unchecked_numbers(text, said() + SETTINGS) == []


def test_the_settings_that_are_not_recomputed_are_still_told():
    assert not_said(PAGES["configs/minilm/README.md"][0], SETTINGS) == []


def test_no_moving_teacher_is_ahead_of_the_frozen_one_over_all_pairs_by_dev_or_validation_score():
    for row in MOVING:
        assert STUDY.difference(row) < 0, row
        assert STUDY.difference(row, column="validation") < 0, row


def test_only_metadistil_is_behind_the_frozen_teacher_beyond_chance_and_not_with_its_own_adamw():
    assert [row for row in MOVING if STUDY.p(row) < 0.05] == ["metadistil"]
    assert ADAMW.p("metadistil") > 0.05


def test_on_rte_no_student_is_right_more_often_than_one_class():
    for row in ("finetune", "kd", "reptile", "interpolate"):
        assert max(round(run["student"], 1) for *_, run in STUDY.of(row, ["rte"])) <= ONE_CLASS, row


@pytest.mark.parametrize(
    ("study", "row"),
    [(STUDY, "reptile"), *((RELEASED, row) for row in ("mu-1e-5", "map-both", "still-head", "still-embeddings"))],
)
def test_the_released_update_has_taken_the_cola_teacher_to_0_in_every_seed_after_one_epoch(study, row):
    assert set(study.scores(row, 1, ["cola"], "teacher")) == {0}


@pytest.mark.parametrize("task", OWN_LAYERS)
def test_most_of_a_small_gap_is_closed_within_one_epoch(task):
    assert STUDY.logged("gap", "reptile", 1, [task]) < 0.5 * STUDY.logged("gap", "interpolate", 1, [task])


def test_a_student_of_another_checkpoint_and_its_teacher_stay_where_they_are():
    assert abs(STUDY.difference("reptile", tasks=["sst2"])) < 0.5
    assert abs(STUDY.lost("reptile", ["sst2"])) < 0.5
    assert STUDY.logged("teacher_drift", "reptile", 3, ["sst2"]) < 0.2 * STUDY.logged("gap", "reptile", 1, ["sst2"])


def test_under_reptile_students_are_mostly_worse_where_the_teacher_lost_over_three_points_and_on_cola_always():
    dots = STUDY.dots(("reptile", "interpolate"))
    assert all(abs(ahead) < 1.5 for _, _, lost, ahead in dots if lost <= 3)
    fallen = [(task, ahead) for task, _, lost, ahead in dots if lost > 3]
    assert sum(ahead < 0 for _, ahead in fallen) > 0.8 * len(fallen)
    assert all(lost > 3 and ahead < 0 for task, _, lost, ahead in dots if task == "cola")


def test_from_a_start_that_knows_the_task_the_students_are_not_behind_beyond_chance_at_twice_the_time():
    assert START.p("tuned-start", "kd-tuned-start") > 0.05
    assert round(START.times("tuned-start", "kd-tuned-start"), 1) == 2


def test_three_rows_are_ahead_in_the_search_by_less_than_a_point_over_kd_and_below_fine_tuning():
    rows = [row for row in load_table_config(CONFIGS / "minilm/ablation.yaml").keys.methods if row != "finetune"]
    by_score = sorted(rows, key=lambda row: ABLATION.mean(row, "validation"), reverse=True)
    assert by_score[:3] == ["mu-1e-2", "keep-task", KEPT]
    assert ABLATION.difference("mu-1e-2", column="validation") < 1
    assert ABLATION.difference("mu-1e-2", "finetune", column="validation") < 0


def test_what_was_gained_with_the_first_seed_is_not_beyond_chance_with_all_three():
    for row in ("mu-1e-2", KEPT):
        assert KEEP.p(row) > 0.05, row
    first, *others = KEEP.differences("mu-1e-2")
    assert first > 0 > max(others)
    assert abs(KEEP.difference(KEPT, "finetune")) < 0.5


def test_no_teacher_that_stood_still_was_as_good_as_those_that_were_kept_at_their_task():
    assert min(run["end"] for *_, run in KEEP.of(KEPT)) > max(run["start"] for *_, run in KEEP.of("kd"))


def test_distillation_learns_cola_sooner_than_fine_tuning():
    kd, finetune = (fmean(STUDY.scores(row, 2, ["cola"])) for row in ("kd", "finetune"))
    assert kd > 2 * finetune


def test_the_released_codes_adamw_changes_metadistil_on_cola_in_every_seed_and_hardly_elsewhere():
    for column in ("student", "validation"):
        assert set(since_the_adamw("kd", ["sst2", "cola"], column)) == {0}
        assert max(map(abs, since_the_adamw("metadistil", ["stsb"], column))) < 0.05
        assert max(map(abs, since_the_adamw("metadistil", ["sst2"], column))) < 0.5
        assert min(since_the_adamw("metadistil", ["cola"], column)) > 0


def test_the_order_changes_no_score_under_the_printed_equation_and_kd_takes_least_time():
    assert set(ORDER.differences("interpolate-student-first", "interpolate")) == {0}
    rows = ("interpolate", "interpolate-student-first", "reptile", "reptile-student-first")
    assert min(ORDER.p(row) for row in rows) > 0.05
    assert min(ORDER.times(row) for row in rows) > 1
