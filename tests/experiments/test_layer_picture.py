"""Which student layer moves which teacher layer, as a picture."""

import pytest

from reptile_distil.experiments.dry_run_text import draw_layer_map, encodable_on


def test_twelve_to_six_skip():
    skip = ((1,), (3,), (5,), (7,), (9,), (11,))
    assert draw_layer_map(skip, num_teacher_layers=12).splitlines() == [
        "teacher  0  1  2  3  4  5  6  7  8  9 10 11",
        "         ·  ↑  ·  ↑  ·  ↑  ·  ↑  ·  ↑  ·  ↑",
        "student     0     1     2     3     4     5",
    ]


def test_both_shows_each_student_layer_under_its_two_teacher_layers():
    both = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11))
    assert draw_layer_map(both, num_teacher_layers=12).splitlines() == [
        "teacher  0  1  2  3  4  5  6  7  8  9 10 11",
        "         ↑  ↑  ↑  ↑  ↑  ↑  ↑  ↑  ↑  ↑  ↑  ↑",
        "student  0  0  1  1  2  2  3  3  4  4  5  5",
    ]


def test_twenty_four_to_six_fits_on_80_columns():
    skip = ((3,), (7,), (11,), (15,), (19,), (23,))
    assert draw_layer_map(skip, num_teacher_layers=24).splitlines() == [
        "teacher  0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17 18 19 20 21 22 23",
        "         ·  ·  ·  ↑  ·  ·  ·  ↑  ·  ·  ·  ↑  ·  ·  ·  ↑  ·  ·  ·  ↑  ·  ·  ·  ↑",
        "student           0           1           2           3           4           5",
    ]


def test_a_map_of_ones_own_may_cross():
    assert draw_layer_map(((2,), (0, 1)), num_teacher_layers=4).splitlines() == [
        "teacher  0  1  2  3",
        "         ↑  ↑  ↑  ·",
        "student  1  1  0",
    ]


def test_more_layers_than_fit_go_on_below():
    assert draw_layer_map(((1,), (3,)), num_teacher_layers=4, width=14).splitlines() == [
        "teacher  0  1",
        "         ·  ↑",
        "student     0",
        "teacher  2  3",
        "         ·  ↑",
        "student     1",
    ]


def test_a_hundred_layers_have_room_for_three_digits():
    first = tuple((k,) for k in range(110))
    lines = draw_layer_map(first, num_teacher_layers=110).splitlines()
    assert max(map(len, lines)) <= 80
    assert " 108 109" in lines[-3]
    assert lines[-3].removeprefix("teacher") == lines[-1].removeprefix("student")


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", "·  ↑"), ("ascii", ".  ^"), ("latin-1", ".  ^")])
def test_a_terminal_without_arrows_gets_plain_letters(tmp_path, encoding, shown):
    with (tmp_path / "terminal").open("w", encoding=encoding) as stream:
        assert encodable_on(stream, "·  ↑") == shown
