import pytest

from reptile_distil import Experiment
from tests.helpers.paths import TINY


@pytest.fixture
def tiny(tmp_path):
    """An experiment of about a second, in a folder of its own."""

    def tiny(*overrides):
        return Experiment.from_yaml(TINY, f"runs_dir={tmp_path}/runs", *overrides)

    return tiny
