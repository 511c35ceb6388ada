"""Where the project's files lie, wherever a test module does."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
FIXTURES = ROOT / "tests" / "fixtures"
TINY = FIXTURES / "tiny.yaml"
TINY_TABLE = FIXTURES / "tiny-table.yaml"
