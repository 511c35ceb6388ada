"""Every number in the sentences about the toy study can be had from the raw results beside them."""

from statistics import fmean

import pytest
from scipy import stats

from reptile_distil.tables.config import load_table_config
from tests.helpers.measured import Measured
from tests.helpers.paths import CONFIGS
from tests.helpers.prose import IN_WORDS, not_said, prose, section, unchecked_numbers

STUDY, ORDER, METHODS, ADAMW = (
    Measured(CONFIGS / "toy" / f"{name}epochs.csv") for name in ("", "order-", "methods-", "adamw-")
)
MOVING = [row for row in load_table_config(CONFIGS / "toy/ablation.yaml").keys.methods if row not in ("finetune", "kd")]
EPOCHS = (1, 2, 3)
FULL_RATE = ("keep-task-mu-1e-2", "keep-task-mu-0")
PARTS = ("still-head", "still-embeddings", "map-both", "inner-steps-4")
SMALL = [row for row in MOVING if row not in ("released", "metadistil", "mu-1e-2", *FULL_RATE)]
"""The rows of the printed equation with a mu of 1e-3 or less."""
SETTINGS = ["rate of 1.5e-4", "1 / √(1 - 0.999^t)"]


def said_of_the_ablation():
    ahead, behind, p, times = STUDY.ahead, STUDY.behind, STUDY.p, STUDY.times
    best = sorted(MOVING, key=STUDY.difference, reverse=True)
    above = {row: STUDY.difference(row, column="validation") for row in MOVING}
    chosen = sorted(MOVING, key=above.get, reverse=True)[:3]
    released, held_out, metadistil = (
        sorted(STUDY.lost_by_task(row)) for row in ("released", "inner-held-out", "metadistil")
    )
    moved, unmoved = FULL_RATE
    gains = [-STUDY.lost(row, ["toy-threeway"]) for row in FULL_RATE]
    one_step = [times(row) for row in SMALL if row not in ("every-4", "keep-task", "inner-steps-4")]
    changes = [abs(STUDY.difference(row, "mu-1e-3")) for row in PARTS]
    num_seeds = len(STUDY.seeds)
    return [
        f"{STUDY.num_runs} runs,",
        f"{IN_WORDS[num_seeds]} seeds cannot give a p below {2 / 2**num_seeds:.2g}.",
        f"worth {behind('finetune')} points over fine-tuning alone. Of {len(MOVING)} moving teachers none beats",
        f"the best (`{best[0]}`, `{best[1]}`) are at {ahead(best[0])} and {ahead(best[1])}, and of",
        "(`{}`, `{}` and `{}`, ".format(*chosen) + f"{above[chosen[-1]]:.1f} to {above[chosen[0]]:.1f} above kd there)",
        f"its own score falls by {released[0]:.0f} to {released[-1]:.0f} points, within the first two epochs, and its "
        f"students are {behind('released')} points behind those of the frozen teacher (p {p('released'):.2g}, before "
        f"any correction for {len(MOVING) + 1} comparisons)",
        f"loses {STUDY.lost('mu-1e-2'):.0f} points, the students {behind('mu-1e-2')} (p {p('mu-1e-2'):.1g}).",
        f"`inner-held-out` is {behind('inner-held-out')} points behind (p {p('inner-held-out'):.1g}) though its "
        f"teacher loses {held_out[-1]:.1f} at the most",
        f"MetaDistil is {behind('metadistil')} points behind (p {p('metadistil'):.1g}) at {times('metadistil'):.1f} "
        f"times the time of plain distillation; its teacher loses {metadistil[-1]:.1f} points at the most",
        f"on toy-threeway, by {gains[0]:.0f} points (`{moved}`) or, without any movement towards the student, by "
        f"{gains[1]:.0f} (`{unmoved}`), and teaches worse: {behind(moved)} (p {p(moved):.1g}) and {behind(unmoved)} "
        f"points (p {p(unmoved):.2g}) behind.",
        f"(under `map-both` {STUDY.lost('map-both'):.1f}), and Reptile is plain distillation at {min(one_step):.1f} to "
        f"{max(one_step):.1f} times its time; at {times('every-4'):.1f} times every fourth step only, at "
        f"{times('keep-task'):.1f} with the teacher's own steps, at {times('inner-steps-4'):.1f} with four inner ones.",
        f"({max(changes):.1f} points beside `mu-1e-3` at the most)",
        f"holds, by a factor of {times('metadistil', 'reptile'):.1f}, and so does",
    ]


def said_of_the_dots():
    dots, without = (
        STUDY.dots([row for row in MOVING if row not in (*FULL_RATE, *left_out)]) for left_out in ((), ("mu-1e-2",))
    )
    fallen = [ahead for _, _, lost, ahead in dots if lost > 3]
    kept = [ahead for _, _, lost, ahead in dots if lost < 0.3]
    return [
        f"Over {len(dots)} of them, all but those of the {IN_WORDS[len(FULL_RATE)]} rows",
        "(correlation {:.2f}, of ranks {:.2f}), mostly because".format(*correlations(dots)),
        "of `mu-1e-2` (without it {:.2f} and {:.2f})".format(*correlations(without)),
        f"where the teacher lost more than 3 points the student is {-fmean(fallen):.1f} behind the frozen teacher's in "
        f"the mean ({len(fallen)} runs)",
        f"where it lost less than 0.3 or gained, {-fmean(kept):.1f} ({len(kept)} runs, MetaDistil's",
    ]


def correlations(dots):
    """Of what the teachers and what the students lost; then of their ranks."""
    teachers, students = [lost for _, _, lost, _ in dots], [-ahead for *_, ahead in dots]
    return [of(teachers, students).statistic for of in (stats.pearsonr, stats.spearmanr)]


def said_of_the_order():
    first, second = ("student-first", "reptile"), ("released-student-first", "released")
    by_task = {pair: [abs(ORDER.difference(*pair, [task])) for task in ORDER.tasks] for pair in (first, second)}
    ends = [abs(ORDER.difference(*pair, [task], "end")) for pair in by_task for task in ORDER.tasks]
    return [
        f"over the {IN_WORDS[len(ORDER.of('reptile'))]} pairs, and within {max(map(max, by_task.values())):.1f} points",
        f"gives `reptile`'s scores within {max(by_task[first]):.1f}, `released-student-first` those of `released`, "
        f"{ORDER.difference(*second):.1f} points above in the mean.",
        f"ends where it ends under the published order, within {max(ends):.1f} points.",
    ]


def said_of_all_methods():
    ahead, behind = METHODS.ahead, METHODS.behind
    pairs = len(METHODS.of("prokt"))
    first_epochs = [METHODS.mean("checkpoints", "start", [task]) for task in ("toy-pair", "toy-sentence")]
    return [
        f"{METHODS.num_runs} runs; the machine was shared",
        f"{IN_WORDS[pairs]} pairs leave to chance (the smallest p they allow is {2 / 2**pairs:.2f})",
        f"({ahead('prokt')} and {ahead('cotrain')}), and so is the published order of `prokt` "
        f"({ahead('prokt-teacher-first')}).",
        "({:.0f} and {:.0f} % on dev), and ends level on one task, ".format(*first_epochs)
        + f"{behind('checkpoints', tasks=['toy-pair'])} behind on the other.",
        f"`metadistil` {behind('metadistil')} behind, `lgtm` {behind('lgtm')}, of which",
        f"(`kd-extra-rows`), is {behind('kd-extra-rows')} behind",
    ]


def said_of_the_adamw():
    lost, before = (sorted(study.lost_by_task("metadistil")) for study in (ADAMW, STUDY))
    return [
        f"`released` is {ADAMW.behind('released')} points behind as before (now p {ADAMW.p('released'):.1g})",
        f"`metadistil` {ADAMW.behind('metadistil')} (before {STUDY.behind('metadistil')}), `reptile` level.",
        f"it loses {lost[-1]:.1f} points at the most on its tasks (before {before[-1]:.1f}), and gains "
        f"{-ADAMW.lost('metadistil', ['toy-sentence']):.1f} on toy-sentence.",
    ]


def said_of_the_readme():
    return [
        *said_of_the_ablation(),
        *said_of_the_dots(),
        *said_of_the_order(),
        *said_of_all_methods(),
        *said_of_the_adamw(),
    ]


def said_of_the_summary():
    behind, num_moving = STUDY.behind, len(MOVING)
    variants = ("reptile", "mu-1e-3", "until-half", "keep-task", *PARTS)
    ahead = [STUDY.difference(row) for row in variants]
    times = [STUDY.times(row) for row in variants]
    released = STUDY.lost_by_task("released")
    pairs = len(METHODS.of("prokt"))
    return [
        f"{IN_WORDS[len(STUDY.tasks)]} generated tasks, {IN_WORDS[len(STUDY.seeds)]} seeds, {num_moving} moving",
        f"Distillation from a frozen teacher is worth {behind('finetune')} points over fine-tuning.",
        f"({min(ahead):+.1f} to {max(ahead):+.1f}) at {min(times):.1f} to {max(times):.1f} times the time",
        f"goes on learning its task at the full rate loses {behind('keep-task-mu-1e-2')} points,",
        f"the released update loses {behind('released')} (p {STUDY.p('released'):.2g} before correction for "
        f"{num_moving + 1} comparisons) and costs the teacher {min(released):.0f} to {max(released):.0f},",
        f"MetaDistil loses {behind('metadistil')} at {STUDY.times('metadistil'):.1f} times the time.",
        f"on {IN_WORDS[len(METHODS.tasks)]} of these tasks, {IN_WORDS[pairs]} pairs.",
        "`prokt` is at {}, `cotrain` at {}, `checkpoints` at {}, `metadistil` and `lgtm`, whose quizzes take rows, at "
        "{} and {}, none of it beyond chance.".format(
            *map(METHODS.ahead, ("prokt", "cotrain", "checkpoints", "metadistil", "lgtm"))
        ),
    ]


SUMMARY = section((CONFIGS / "README.md").read_text(encoding="utf-8"), "Does a moving teacher pay?")
PAGES = {
    "configs/toy/README.md": (prose((CONFIGS / "toy/README.md").read_text(encoding="utf-8")), said_of_the_readme),
    "configs/README.md": (prose(SUMMARY.partition("- [minilm]")[0]), said_of_the_summary),
}


@pytest.mark.parametrize(("text", "said"), PAGES.values(), ids=PAGES)
def test_the_sentences_have_the_numbers_of_the_raw_results(text, said):
    assert not_said(text, said()) == []


@pytest.mark.parametrize(("text", "said"), PAGES.values(), ids=PAGES)
def test_every_number_with_a_decimal_point_is_in_a_sentence_that_is_recomputed(text, said):
    assert unchecked_numbers(text, said() + SETTINGS) == []


def test_the_settings_that_are_not_recomputed_are_still_told():
    assert not_said(PAGES["configs/toy/README.md"][0], SETTINGS) == []


def test_no_moving_teacher_beats_the_frozen_one_beyond_chance():
    ahead = [row for row in MOVING if STUDY.difference(row) > 0]
    assert [row for row in ahead if STUDY.p(row) < 0.05] == []


def test_the_rows_that_validation_would_choose_are_not_above_the_frozen_teacher_on_dev():
    above = {row: STUDY.difference(row, column="validation") for row in MOVING}
    for row in sorted(MOVING, key=above.get)[-3:]:
        assert STUDY.difference(row) < 0, row


def test_the_rows_that_are_said_to_lose_are_lowest_and_but_for_one_beyond_chance():
    losing = ["released", "metadistil", "mu-1e-2", "inner-held-out", *FULL_RATE]
    assert set(sorted(MOVING, key=STUDY.difference)[: len(losing)]) == set(losing)
    assert [row for row in losing if STUDY.p(row) > 0.05] == ["keep-task-mu-0"]


def test_the_released_update_takes_its_points_from_the_teacher_in_the_first_two_epochs():
    for task in STUDY.tasks:
        by_epoch = [fmean(STUDY.scores("released", epoch, [task], "teacher")) for epoch in (0, *EPOCHS)]
        assert by_epoch.index(min(by_epoch)) <= 2, task


@pytest.mark.parametrize("row", SMALL)
def test_with_a_small_mu_the_teacher_loses_a_point_or_less_but_for_one_map(row):
    assert (STUDY.lost(row) <= 1) == (row != "map-both")


@pytest.mark.parametrize("row", PARTS)
def test_leaving_out_parts_another_map_and_more_inner_steps_change_nothing_against_the_frozen_teacher(row):
    assert STUDY.p(row) > 0.05


def test_metadistil_and_held_out_rows_are_among_the_runs_whose_teacher_kept_its_score():
    kept = {row for _, row, lost, _ in STUDY.dots(MOVING) if lost < 0.3}
    assert {"metadistil", "inner-held-out"} <= kept


@pytest.mark.parametrize("epoch", EPOCHS)
def test_reptile_is_ahead_of_metadistil_and_neither_of_the_frozen_teacher_after_any_epoch(epoch):
    frozen, reptile, metadistil = (fmean(STUDY.scores(row, epoch)) for row in ("kd", "reptile", "metadistil"))
    assert metadistil < reptile < frozen


def test_the_order_changes_no_students_score_by_half_a_point_and_gains_nothing_on_the_frozen_teacher():
    for row, other in (("student-first", "reptile"), ("released-student-first", "released")):
        assert abs(ORDER.difference(row, other)) < 0.5
        assert ORDER.difference(row) < 0


def test_of_all_methods_only_the_quizs_rows_as_labels_are_beyond_chance_and_those_with_a_quiz_are_lowest():
    rows = [
        row for row in load_table_config(CONFIGS / "toy/methods.yaml").keys.methods if row not in ("finetune", "kd")
    ]
    assert [row for row in rows if METHODS.p(row) < 0.05] == ["kd-extra-rows"]
    by_score = sorted(rows, key=METHODS.difference)
    assert by_score[:3] == ["kd-extra-rows", "lgtm", "metadistil"]


def test_with_the_released_codes_adamw_no_moving_teacher_is_ahead_beyond_chance_either():
    for row in ("reptile", "released", "metadistil"):
        assert ADAMW.difference(row) < 0 or ADAMW.p(row) > 0.05, row
    assert ADAMW.behind("released") == STUDY.behind("released")
