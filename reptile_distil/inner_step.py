"""Rules on equation 1 that the configuration and the method share; neither imports the other."""


def has_closed_form(*, inner_steps: int, inner_optimizer: str) -> bool:
    """Whether equation 1 is a single step of a new optimizer, which needs no copy of the student."""
    return inner_steps == 1 and inner_optimizer != "persistent_adamw"


def can_share_forward(*, inner_steps: int, inner_batch: str, inner_optimizer: str) -> bool:
    """Whether one forward pass of the student can serve equations 1 and 3: one new step on the same batch."""
    return has_closed_form(inner_steps=inner_steps, inner_optimizer=inner_optimizer) and inner_batch == "same"
