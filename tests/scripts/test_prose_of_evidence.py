"""Every number in the sentences about what a better teacher is worth can be had from the raw results."""

import csv
from statistics import fmean, stdev

import pytest
from scipy import stats

from reptile_distil.tables.config import load_table_config
from reptile_distil.tables.statistics import pairs_needed
from tests.helpers.measured import Measured
from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.prose import IN_WORDS, not_said, prose, section, unchecked_numbers
from tests.helpers.studies import compare, comparison_lines, read_headroom, told, with_interval

EVIDENCE = CONFIGS / "evidence"
ROOM = read_headroom(EVIDENCE / "headroom.csv")
UNLABELLED, LABELLED, LONG = (
    {task: of_task for (task, row), of_task in ROOM.items() if row == name}
    for name in ("unlabelled", "labelled", "long")
)
METHODS, LONGER, TEN_EPOCHS = (
    Measured(EVIDENCE / f"{name}-epochs.csv", "validation") for name in ("methods", "longer-teacher", "long")
)
COMPARED = Measured(EVIDENCE / "comparison-epochs.csv")
NAMES = {name: name.upper() for name in UNLABELLED} | {"stsb": "STS-B"}
BARS = ("kd", "kd-longer", "kd-quiz", "finetune", "teacher")
MOVING = [method for method in dict.fromkeys(method for _, method in METHODS.runs) if method not in BARS]
QUIZZED = ("lgtm", "metadistil")
ORDINARY = ("trec", "mr", "qqp")
"""The tasks whose students are nearly done at the end of their runs: all but STS-B."""
CHANCE = {"mnli": 33}


def audited():
    """(method, step) → mean over batches of what a step of kd, one more move and all moves gain, in thousandths."""
    with (EVIDENCE / "audit.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    gains = {}
    for method, step in dict.fromkeys((line["method"], int(line["step"])) for line in lines):
        of_stage = [line for line in lines if (line["method"], int(line["step"])) == (method, step)]
        loss = {
            name: 1000 * fmean(float(line[name]) for line in of_stage)
            for name in ("before", "frozen", "moved", "so_far")
        }
        gains[method, step] = {
            "kd": loss["before"] - loss["frozen"],
            "move": loss["so_far"] - loss["moved"],
            "so_far": loss["frozen"] - loss["so_far"],
        }
    return gains


def span(values, decimals=1, *, signed=False):
    low, high = (f"{value:{'+' if signed else ''}.{decimals}f}" for value in (min(values), max(values)))
    return f"{low} to {high}".replace("-0.0 ", "+0.0 " if signed else "0.0 ")


def listed(tasks):
    *others, last = [NAMES[task] for task in tasks]
    return f"{', '.join(others)} and {last}" if others else last


def worth(targets, of_tasks, *, signed=True, sign=1):
    """The span over tasks of what some targets add to the frozen teacher's student."""
    return span([sign * of_task[targets]["difference"] for of_task in of_tasks.values()], signed=signed)


def gains():
    return {task: of_task["frozen"]["gain"] for task, of_task in UNLABELLED.items() if of_task["frozen"]["gain"]}


def larger(task):
    """The better of the two targets that bound the room."""
    return max((UNLABELLED[task][targets] for targets in ("more_labels", "oracle")), key=lambda of: of["difference"])


def behind_their_teacher(task):
    """By how much each of a task's students is behind the frozen teacher."""
    return [UNLABELLED[task]["frozen"]["teacher"] - of["student"] for of in UNLABELLED[task].values()]


def said_of_the_room():
    roomy = [task for task in UNLABELLED if larger(task)["difference"] >= 2]
    surely = [task for task in UNLABELLED if larger(task)["low"] > 2]
    (little,) = set(UNLABELLED) - set(roomy)
    told_before = [
        100 * of_task["more_labels"]["labelled_rows"] * 8 / of_task["more_labels"]["transfer_rows"]
        for of_task in UNLABELLED.values()
    ]
    ahead = [
        task for task, of in UNLABELLED.items() if of["more_labels"]["difference"] > of["oracle"]["difference"] + 0.05
    ]
    beyond_chance = [task for task, gain in gains().items() if gain["low"] > 0]
    over_labels = [-of_task["labels"]["difference"] for of_task in LABELLED.values()]
    return [
        f"is at two points or more on {listed(roomy)}; its interval is wholly above two on {listed(surely)}.",
        f"{NAMES[little]} falls out: {larger(little)['difference']:.1f} points at best.",
        f"MNLI's teacher is right on {UNLABELLED['mnli']['frozen']['teacher']:.1f} % of the rows, by chance on "
        f"{CHANCE['mnli']} %",
        f"From labelled rows alone there is less: {worth('more_labels', LABELLED)} from eight times the labels, "
        f"{worth('oracle', LABELLED)} from the oracle.",
        f"of {span(told_before, 0)} % of the rows that its student sees without labels",
        f"that teacher's student is ahead of the oracle's on {IN_WORDS[len(ahead)]} of {IN_WORDS[len(UNLABELLED)]} "
        "tasks",
        f"Learning from the frozen teacher on the labelled rows alone is worth {span(over_labels, signed=True)} points "
        "over their labels",
        f"the rows without labels add {span([gain['difference'] for gain in gains().values()], signed=True)}, beyond "
        f"chance on {listed(beyond_chance)}.",
        f"Three teachers of the same labels, averaged, add {worth('averaged', UNLABELLED)}.",
        f"QNLI's students stay {span(behind_their_teacher('qnli'), 0)} points behind the frozen teacher whatever they "
        "are told.",
    ]


def behind_when_long():
    """By how much the frozen teacher's students are behind it after ten epochs."""
    return [of["frozen"]["teacher"] - of["frozen"]["student"] for of in LONG.values()]


def said_of_the_long_room():
    grown = [
        task
        for task, of in LONG.items()
        if all(
            of[targets]["difference"] > UNLABELLED[task][targets]["difference"] for targets in ("more_labels", "oracle")
        )
    ]
    assert grown == list(LONG)
    surely = [task for task, of in LONG.items() if of["more_labels"]["low"] > 2]
    return [
        f"In ten epochs it does not fill up, it grows, on each of the {IN_WORDS[len(LONG)]} tasks: "
        f"{worth('more_labels', LONG)} from eight times the labels, with an interval wholly above two on "
        f"{listed(surely)}, and {worth('oracle', LONG)} from the oracle",
        f"the frozen teacher's students come to within {span(behind_when_long())} points of it",
        f"three teachers averaged add {worth('averaged', LONG)}, the labels alone {worth('labels', LONG)}",
    ]


def said_of_ten_epochs():
    over_kd, at_end = (TEN_EPOCHS.against("cotrain", column=column) for column in ("student", "at_end"))
    with_teacher = [task for task in TEN_EPOCHS.tasks if (task, "kd-longer-teacher") in TEN_EPOCHS.runs]
    longer, teacher = (TEN_EPOCHS.against(bar) for bar in ("kd-longer", "kd-longer-teacher"))
    over_longer, over_teacher = (
        TEN_EPOCHS.against("cotrain", bar, tasks=tasks)
        for bar, tasks in (("kd-longer", TEN_EPOCHS.tasks), ("kd-longer-teacher", with_teacher))
    )
    differences = [
        TEN_EPOCHS.runs[task, "cotrain"][seed]["student"] - run["student"]
        for task, seed, run in TEN_EPOCHS.of("kd-longer-teacher")
    ]
    better = [
        task
        for task in TEN_EPOCHS.tasks
        if TEN_EPOCHS.mean("cotrain", "end", [task]) > TEN_EPOCHS.mean("cotrain", "start", [task])
    ]
    return [
        f"`cotrain` is at {told(over_kd)} beside `kd`, after the last epoch at {told(at_end)}",
        f"{TEN_EPOCHS.ahead('cotrain', tasks=['stsb'])} on STS-B",
        f"it takes {TEN_EPOCHS.times('cotrain', 'kd'):.1f} times the seconds",
        f"on {listed(better)} its teacher ends ahead of where it began",
        f"`kd-longer` is at {told(longer)} beside `kd`, and `cotrain` at {told(over_longer)} beside it;",
        f"`kd-longer-teacher` is at {told(teacher)}, and `cotrain` at {told(over_teacher)} beside it.",
        f"with their spread of {stdev(differences):.1f}, {pairs_needed(stdev(differences), 1.0)} pairs",
    ]


def said_of_repeated_texts():
    with (EVIDENCE / "headroom-once.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    by_task = {name: [line for line in lines if line["task"] == name] for name in ("trec", "stsb")}
    assert all([line["targets"] for line in of_task] == ["more_labels", "oracle"] for of_task in by_task.values())
    (trec, stsb) = (
        " and ".join(
            with_interval({key: 100 * float(line[key]) for key in ("difference", "low", "high")}) for line in of_task
        )
        for of_task in by_task.values()
    )
    repeated = [
        f"{of[0]['in_training_rows']} of {NAMES[task]}'s {of[0]['held_out_rows']}" for task, of in by_task.items()
    ]
    return [
        f"{repeated[0]} and {repeated[1]}.",
        f"Without them the room of seed 42 is {trec} on TREC, {stsb} on STS-B",
    ]


def said_of_the_methods():
    on_all = [method for method in MOVING if all(METHODS.of(method, [task]) for task in METHODS.tasks)]
    best = max(on_all, key=METHODS.difference)
    over_kd = METHODS.against(best)
    reaching = [method for method in MOVING if METHODS.against(method).high >= 1]
    epochs = [[run["epochs"] for _, _, run in METHODS.of(method)] for method in ("kd", "kd-longer", "finetune")]
    bar = METHODS.against("kd-longer")
    fallen = sorted(METHODS.lost_by_task("reptile"))
    first = METHODS.times("reptile-student-first", "reptile")
    at_end = {method: METHODS.difference(method, column="at_end") for method in ("kd-longer", "cotrain", "reptile")}
    by_seed = METHODS.differences("cotrain", tasks=["mr"])
    stsb = [METHODS.mean("cotrain", column, ["stsb"]) for column in ("start", "end")]
    quiz_lost = [
        METHODS.lost(method, [task]) for method in QUIZZED for task in METHODS.tasks if METHODS.of(method, [task])
    ]
    quiz = [METHODS.against(method) for method in QUIZZED]
    kept = METHODS.against("checkpoints")
    assert reaching == []
    assert over_kd.mean_difference < 0.05
    return [
        f"the best of {min(epochs[0])} or {max(epochs[0])} epochs (`kd-longer` {min(epochs[1])} or {max(epochs[1])}, "
        f"`finetune` {max(epochs[2])})",
        f"After the last epoch instead they are at {at_end['kd-longer']:+.1f} (`kd-longer`), {at_end['cotrain']:+.1f} "
        f"(`cotrain`) and {at_end['reptile']:+.1f} (`reptile`).",
        f"No moving teacher is ahead of `kd` over the four tasks: the best, `{best}`, is at {told(over_kd)}, and no "
        f"interval reaches 1.0. `kd-longer`, in less time, is at {told(bar)}.",
        f"The printed equation with a small μ changes nothing ({METHODS.ahead('interpolate')}, in the other order "
        f"{METHODS.ahead('interpolate-student-first')}).",
        f"The released update costs the student {METHODS.behind('reptile')} points and, on {IN_WORDS[3]} of the tasks, "
        f"its teacher {span(fallen[1:])}",
        f"In the other order it costs {METHODS.behind('reptile-student-first')}, in {first:.1f} of the time.",
        f"{by_seed[0]:+.1f} and {by_seed[1]:+.1f} on MR with the two seeds",
        f"takes them from {stsb[0]:.1f} to {stsb[1]:.1f}, and its students are "
        f"{METHODS.ahead('cotrain', tasks=['stsb'])} ahead; more steps from the teacher as it was bring "
        f"{METHODS.ahead('kd-longer', tasks=['stsb'])}.",
        f"`lgtm` and `metadistil` are at {told(quiz[0])} and {told(quiz[1])}, and their teachers lose "
        f"{span(quiz_lost)} points within 160 steps",
        f"the quiz's rows as plain labels bring {METHODS.ahead('kd-quiz')} on TREC",
        f"`checkpoints` is at {told(kept)}:",
    ]


def said_of_longer_teachers():
    more = [run["student"] - METHODS.runs[task, "kd"][seed]["student"] for task, seed, run in LONGER.of("kd")]
    spreads = [stdev(run["validation"] for _, _, run in COMPARED.of("kd", [task])) for task in LONGER.tasks]
    stsb = [LONGER.runs["stsb", "kd"][42]["start"] - METHODS.runs["stsb", "kd"][42]["start"]]
    return [
        f"brings its student {span(more, signed=True)}, with one seed, where seeds spread by {span(spreads)}",
        f"gained {stsb[0]:.1f} points more",
    ]


def said_of_the_audits():
    gain = audited()
    last = max(step for _, step in gain)
    first = min(step for _, step in gain)
    methods = list(dict.fromkeys(method for method, _ in gain))
    unquizzed = [method for method in methods if method not in QUIZZED]
    of_equation = 100 * gain["reptile", first]["move"] / gain["reptile", first]["kd"]
    early = [gain[method, step] for method in QUIZZED for step in (3, 40)]
    accumulated = [-gain[method, step]["so_far"] for method in QUIZZED for step in (40, last)]
    at_end = [gain[method, last] for method in unquizzed]
    losing = [method for method in unquizzed if gain[method, 40]["kd"] < 0]
    assert losing == unquizzed
    assert all(of["so_far"] < 0 for (method, step), of in gain.items() if step == last and method != "interpolate")
    return [
        f"one from a teacher that equation 2 has moved once more does the same, to {of_equation:.2f} % of that",
        f"gain {span([of['move'] for of in early], 2)} thousandths by a move, "
        f"{span([100 * of['move'] / of['kd'] for of in early])} % of an ordinary step",
        f"From step 40 on all their moves together cost {span(accumulated)} thousandths",
        f"costs {span([abs(of['so_far']) for of in at_end])} of the {span([of['kd'] for of in at_end])} thousandths "
        f"that a step gains at step {last}",
    ]


def of_tasks(first, second):
    """The mean over tasks with its 95 % interval, Student's t, each task counting once."""
    means = [COMPARED.difference(first, second, [task]) for task in COMPARED.tasks]
    low, high = stats.t.interval(0.95, len(means) - 1, fmean(means), stats.sem(means))
    return f"[{low:+.1f}, {high:+.1f}]"


def said_of_the_comparison():
    on_held_out = [
        METHODS.runs[task, "cotrain"][42]["student"] - METHODS.runs[task, "kd-longer"][42]["student"]
        for task in COMPARED.tasks
    ]
    ordinary = [COMPARED.difference("kd-longer", tasks=[task]) for task in ORDINARY]
    left_out = {
        pair: told(compare(COMPARED.runs, ORDINARY, *pair)) for pair in (("kd-longer", "kd"), ("cotrain", "kd-longer"))
    }
    gained = {
        task: COMPARED.mean("cotrain", "end", [task]) - COMPARED.mean("cotrain", "start", [task])
        for task in COMPARED.tasks
    }
    assert [task for task in COMPARED.tasks if gained[task] > 0] == ["mr", "qqp", "stsb"]
    return [
        f"`cotrain` was at {fmean(on_held_out):+.1f} beside `kd-longer`, with a spread of {stdev(on_held_out):.1f} "
        f"over the tasks. With such a spread {pairs_needed(stdev(on_held_out), 1.0)} pairs",
        f"`kd-longer` gains {span(ordinary)} points on three tasks and "
        f"{COMPARED.difference('kd-longer', tasks=['stsb']):.1f} on STS-B",
        f"Without STS-B it is at {left_out['kd-longer', 'kd']} beside `kd`, and `cotrain` beside it at "
        f"{left_out['cotrain', 'kd-longer']}",
        f"ends ahead of where it began on MR, QQP and STS-B, there by {gained['stsb']:.1f} points, where its student "
        f"is {COMPARED.behind('cotrain', tasks=['stsb'])} behind.",
        f"{of_tasks('cotrain', 'kd')} (Student's t of the four means), wider than the rule asks for",
    ]


EVIDENCE_SAID = {
    "room": said_of_the_room,
    "repeated texts": said_of_repeated_texts,
    "methods": said_of_the_methods,
    "longer teachers": said_of_longer_teachers,
    "room of ten epochs": said_of_the_long_room,
    "ten epochs": said_of_ten_epochs,
    "audits": said_of_the_audits,
    "comparison": said_of_the_comparison,
}


def said_to_users():
    """What README tells a user to take."""
    minilm, start, toy, adamw = (
        Measured(CONFIGS / name)
        for name in (
            "minilm/epochs.csv",
            "minilm/start-epochs.csv",
            "toy/epochs.csv",
            "minilm/adamw-epochs.csv",
        )
    )
    tuned = start.against("kd-tuned-start")
    gained = gains().values()
    ordinary = [COMPARED.difference("kd-longer", tasks=[task]) for task in ORDINARY]
    fallen = sorted(METHODS.lost_by_task("reptile"))[1:]
    cola = [minilm.mean("reptile", column, ["cola"]) for column in ("start", "end")]
    return [
        f"it added {told(minilm.against('kd', 'finetune'))} to fine-tuning",
        f"({tuned.mean_difference:+.1f} on CoLA, p {tuned.p_value:.2g})",
        f"beside 512 with labels: {span([gain['difference'] for gain in gained], signed=True)} points on "
        f"{IN_WORDS[len(gained)]} tasks, beyond chance on {IN_WORDS[sum(gain['low'] > 0 for gain in gained)]}",
        f"eight times as many: {worth('more_labels', UNLABELLED)}",
        f"three teachers averaged: {worth('averaged', UNLABELLED)}.",
        f"1.8 times as many bring {span(ordinary, signed=True)} on three tasks, "
        f"{COMPARED.ahead('kd-longer', tasks=['stsb'])} on a fourth",
        f"the best of these (`cotrain`) brings {told(COMPARED.against('cotrain'))}. Over ten epochs it is "
        f"at {told(TEN_EPOCHS.against('cotrain'))}, on held-out rows",
        f"`kd` from a longer-trained teacher at {told(TEN_EPOCHS.against('kd-longer-teacher'))}:",
        f"it cost three of four teachers {span(fallen)} points in 160 steps, and took CoLA's from MCC {cola[0]:.0f} to "
        f"{cola[1]:.0f} where",
        f"it ended at {start.mean('tuned-start', 'end'):.0f}",
        f"(kd {-toy.difference('finetune'):+.1f} over fine-tuning, the released update {toy.ahead('released')} and "
        f"MetaDistil {toy.ahead('metadistil')} beside kd)",
        f"(released update {told(minilm.against('reptile'))}, printed equation {told(minilm.against('interpolate'))}, "
        f"MetaDistil {told(adamw.against('metadistil'))} beside kd)",
    ]


def said_in_short():
    """The study in the overview of all."""
    roomy = [task for task in UNLABELLED if larger(task)["difference"] >= 2]
    bar = COMPARED.against("kd-longer")
    return [
        f"a teacher of 8 times the labels is worth {worth('more_labels', UNLABELLED)} points to the student on "
        f"{IN_WORDS[len(UNLABELLED)]} tasks, an oracle {worth('oracle', UNLABELLED)}, and the rows without labels "
        f"themselves {span([gain['difference'] for gain in gains().values()], signed=True)}.",
        f"{IN_WORDS[len(roomy)].capitalize()} of the tasks have room of two points and more.",
        f"`cotrain` is at {told(COMPARED.against('cotrain'))} beside the frozen teacher",
        f"at {told(bar)}, most of it on STS-B. In ten epochs the better target is "
        f"worth {worth('more_labels', LONG)} on four tasks",
        f"`cotrain` is at {told(TEN_EPOCHS.against('cotrain'))} there on the held-out rows, and `kd` from a "
        f"longer-trained teacher at {told(TEN_EPOCHS.against('kd-longer-teacher'))}",
    ]


@pytest.mark.parametrize("part", EVIDENCE_SAID)
def test_the_study_says_what_was_measured(part):
    text = prose((EVIDENCE / "README.md").read_text(encoding="utf-8"))
    assert not_said(text, EVIDENCE_SAID[part]()) == []


def test_every_number_in_the_sentences_of_the_study_is_measured_or_set():
    table = load_table_config(EVIDENCE / "methods.yaml")
    longer = table.keys.variants["kd-longer"]["train"]["max_steps"] / 160
    settings = [
        f"for {longer:.1f} times the steps",
        "1.0 point or more",
        "p below 0.05. **No** if there",
        "over `kd` is below 1.0.",
        "take 0.4 of the time of float32",
        "the audits 1.5, the longer teachers 0.4, the comparison 3",
    ]
    text = prose((EVIDENCE / "README.md").read_text(encoding="utf-8"))
    verdict = comparison_lines(COMPARED.runs, COMPARED.tasks)
    said = [sentence for part in EVIDENCE_SAID.values() for sentence in part()]
    assert unchecked_numbers(text, [*said, *verdict, *settings]) == []


def test_what_a_user_is_told_to_take_is_what_was_measured():
    text = prose(section((ROOT / "README.md").read_text(encoding="utf-8"), "What the studies say"))
    assert not_said(text, said_to_users()) == []
    assert unchecked_numbers(text, said_to_users()) == []


def test_the_overview_of_the_studies_says_what_was_measured():
    text = prose(section((CONFIGS / "README.md").read_text(encoding="utf-8"), "Does a moving teacher pay?"))
    of_study = text[text.index("- [evidence](evidence/README.md)") : text.index("So no variant has earned")]
    assert not_said(of_study, said_in_short()) == []
    assert unchecked_numbers(of_study, [*said_in_short(), "for 1.8 times the steps"]) == []


def test_the_task_of_ones_own_says_what_rows_without_labels_were_worth():
    own_task = (CONFIGS / "own-task.yaml").read_text(encoding="utf-8")
    worth_of_rows = span([gain["difference"] for gain in gains().values()], signed=True)
    assert f"worth {worth_of_rows} points on {IN_WORDS[len(gains())]} tasks" in own_task
