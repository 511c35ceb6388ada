"""Faults a user can cause and mend. Each message is one sentence: what was found, and what to do.

The scripts print the message and exit with code 2; nothing else in the package catches them.
"""


class ReptileDistilError(Exception):
    """Base of every error that a user can mend: config, data, model or run folder."""


class ConfigError(ReptileDistilError):
    """A YAML file or a `key=value` override that cannot be used."""


class DataError(ReptileDistilError):
    """A data folder, a data file or one of its rows that cannot be used."""


class ModelError(ReptileDistilError):
    """A model, a tokenizer or a pair of them that cannot be used."""


class LayerMapError(ModelError):
    """A layer map that does not fit the two models."""


class RunError(ReptileDistilError):
    """A run folder that cannot be used, or a run that cannot go on."""


class RunInUseError(RunError):
    """A run folder in which another process is running."""


class MissingExtraError(ReptileDistilError):
    """An optional package that is not installed."""
