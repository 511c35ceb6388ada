"""The sentences of a README: which of them have been said with the numbers that were measured, and which were not."""

import re
from itertools import chain

DECIMAL = re.compile(r"[+-]?\d+\.\d+")
IN_WORDS = "no one two three four five six seven eight nine ten eleven twelve".split()


def prose(text):
    """A Markdown text as one line, without its code blocks, comments and tables."""
    for left_out in (r"```.*?```", r"<!--.*?-->", r"^\|.*?$"):
        text = re.sub(left_out, "", text, flags=re.DOTALL | re.MULTILINE)
    return " ".join(text.split())


def section(text, heading):
    """What stands below a Markdown heading of level two, up to the next one."""
    _, _, below = text.partition(f"\n## {heading}\n")
    assert below, heading
    return re.split(r"^## ", below, maxsplit=1, flags=re.MULTILINE)[0]


def not_said(text, said):
    """Those of the sentences that a README, as `prose` gives it, does not have."""
    return [sentence for sentence in said if not places(text, sentence)]


def unchecked_numbers(text, said):
    """Every number with a decimal point that stands in none of the sentences, with the words around it."""
    checked = set(chain.from_iterable(chain.from_iterable(places(text, sentence) for sentence in said)))
    return [
        text[max(0, found.start() - 40) : found.end() + 20]
        for found in DECIMAL.finditer(text)
        if not checked.issuperset(range(found.start(), found.end()))
    ]


def places(text, sentence):
    """Where a sentence stands in a text: ranges of characters that cut no number in two."""
    found = re.finditer(rf"(?<![\d.]){re.escape(sentence)}(?!\.?\d)", text)
    return [range(place.start(), place.end()) for place in found]
