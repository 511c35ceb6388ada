"""What the fuzz tests share: how many examples, and what an error has to look like."""

import hypothesis

HEALTH = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow]


def examples(number):
    """So many examples, the same ones in every run; nothing is remembered between runs."""
    return hypothesis.settings(
        max_examples=number, derandomize=True, deadline=None, database=None, suppress_health_check=HEALTH
    )


def assert_one_sentence(error, *names):
    """The message is one line fit for a terminal, and has one of the names in it."""
    message = str(error)
    assert message
    assert message.isprintable()
    assert len(message) < 1600
    assert any(name in message for name in names), message
