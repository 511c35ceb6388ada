"""Peaks of memory."""

import pytest
import torch

from reptile_distil.runtime.measuring import peak_memory


@pytest.mark.parametrize(("with_graphs", "expected"), [(False, 3), (True, 5)])
def test_with_graphs_what_is_reserved_for_them_counts(monkeypatch, with_graphs, expected):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 5)
    assert peak_memory("cuda", with_graphs=with_graphs) == expected
