"""Markdown tables as rows of cells."""

import re


def cells_of(text):
    """The cells of each line of the tables in `text`, headers included, rules left out; escaped pipes separate none."""
    lines = [line for line in text.splitlines() if line.startswith("|") and set(line) - set("|-: ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
