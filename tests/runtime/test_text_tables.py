"""Text tables: what stands in which cell, and that no cell's text is taken for the table's own."""

import math
from html.parser import HTMLParser

import pytest

from reptile_distil.runtime.text_tables import (
    Bold,
    Code,
    escape_latex,
    escape_markdown,
    html_table,
    latex_table,
    markdown_table,
    percent,
    plain_table,
)
from tests.helpers.tables import cells_of


def test_a_plain_table_is_aligned_to_the_left_and_then_to_the_right():
    rows = [("run", "state", "steps"), ("teacher", "new", "1,200"), ("kd", "-", "7")]
    assert plain_table(rows, num_left=2).splitlines() == [
        "run      state  steps",
        "teacher  new    1,200",
        "kd       -          7",
    ]
    assert plain_table(rows).splitlines()[2] == "kd           -      7"


def test_a_markdown_table_is_as_wide_as_its_words_and_says_how_it_is_aligned():
    assert markdown_table(["run", "accuracy"], [["reptile", "80.0"], ["kd", "-"]]).splitlines() == [
        "| run     | accuracy |",
        "|:--------|---------:|",
        "| reptile |     80.0 |",
        "| kd      |        - |",
    ]


@pytest.mark.parametrize("cells", [("1.00x", "007", "1e-3"), ("5e-05", "True", "1,234.50"), ("None", "nan", "-0.0")])
@pytest.mark.parametrize("draw", [lambda row: plain_table([row]), lambda row: markdown_table(["a", "b", "c"], [row])])
def test_no_number_is_rewritten(draw, cells):
    assert draw(cells).splitlines()[-1].replace("|", " ").split() == list(cells)


def test_bold_and_code_are_marked_in_markdown_and_latex_and_nowhere_else():
    row = ((Bold("80.0"), " / 70.0"), (Code("reptile.mu"),))
    assert cells_of(markdown_table(["a", "b"], [row]))[1] == ["**80.0** / 70.0", "`reptile.mu`"]
    assert r"\textbf{80.0} / 70.0 & \texttt{reptile.mu} \\" in latex_table(["a", "b"], [[row]])
    assert plain_table([row]) == "80.0 / 70.0  reptile.mu"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("a\nb\r\x01c", "a b  c"),
        ("a`b`", r"a\`b\`"),
        ("<script>alert(1)</script>", r"\<script>alert(1)\</script>"),
        ("<!-- -->", r"\<!-- -->"),
        ("&lt;b&gt;", r"\&lt;b\&gt;"),
        ("a*b*", r"a\*b\*"),
        (r"C:\models\|", r"C:\\models\\\|"),
        ("my_variant, p<0.001, R&D: 1 < 2", "my_variant, p<0.001, R&D: 1 < 2"),
    ],
)
def test_markdown_shows_every_character_as_it_is_in_one_cell(text, shown):
    assert escape_markdown(text) == shown
    for cell in (text, (text,)):
        assert cells_of(markdown_table([cell, "b"], [[cell, "1"]])) == [[shown, "b"], [shown, "1"]]
    assert cells_of(markdown_table(["a", "b"], [[(Bold(text),), "1"]]))[1] == [f"**{shown}**", "1"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|<b>\n", r"`a\|<b> `"),
        ("a`|b", r"a\`\|b"),  # a backtick would end the code
        (r"a\|b", r"a\\\|b"),  # a backslash is no escape in code
    ],
)
def test_code_stays_in_one_cell(text, shown):
    assert cells_of(markdown_table(["a", "b"], [[(Code(text),), "1"]]))[1] == [shown, "1"]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("my_task & 50% #1 {x} $2", r"my\_task \& 50\% \#1 \{x\} \$2"),
        ("a\\b~c^d", r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d"),
        ("-1.5 ± 0.2 / -0.3 (n=2)", r"$-$1.5 $\pm$ 0.2 / $-$0.3 (n=2)"),
        ("+1.0 [-0.5, 2.0] p<0.001", r"+1.0 [$-$0.5, 2.0] p$<$0.001"),
        ("-", "--"),
        ("kd - finetune", "kd $-$ finetune"),
        ("SST-2 and TinyBERT-6", "SST-2 and TinyBERT-6"),
        ("a\n\nb", "a  b"),
    ],
)
def test_latex_prints_every_character_as_it_is(text, escaped):
    assert escape_latex(text) == escaped
    rows = latex_table(["a", text], [[[text, "1"]]]).splitlines()
    assert [cell.strip() for cell in rows[2].removesuffix(r"\\").split(" & ")] == ["a", escaped]
    assert [cell.strip() for cell in rows[4].removesuffix(r"\\").split(" & ")] == [escaped, "1"]


def test_a_latex_table_has_a_rule_above_each_group():
    lines = latex_table(["a", "b", "c"], [[["1", "2", "3"]], [["4", "5", "6"], ["7", "8", "9"]]]).splitlines()
    assert lines == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"a & b & c \\",
        r"\midrule",
        r"1 & 2 & 3 \\",
        r"\midrule",
        r"4 & 5 & 6 \\",
        r"7 & 8 & 9 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


class Tags(HTMLParser):
    """The tags of a text, and its words."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)

    def handle_data(self, data):
        self.words += data.split()


def test_html_holds_no_tag_but_the_tables_own():
    hostile = "<script>&amp;</script>\"'"
    read = Tags(html_table([(hostile, (Bold(hostile), "!")), ("1", "2")], title=hostile, has_header=True))
    assert read.tags == {"p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert read.words == [hostile, hostile, f"{hostile}!", "1", "2"]


def test_an_html_table_without_rows_is_its_title():
    assert html_table([], title="a < b") == "<p><b>a &lt; b</b></p>"
    assert html_table([]) == ""


@pytest.mark.parametrize(
    ("score", "text"), [(0.8004, "80.0"), (-0.5, "-50.0"), (None, "-"), (math.nan, "-"), (math.inf, "-")]
)
def test_an_undefined_score_is_a_dash(score, text):
    assert percent(score) == text
