"""What a training step does: one file for each `method:` of the YAML, and the gradient step they share."""
