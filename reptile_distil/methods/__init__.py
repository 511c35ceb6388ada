"""What a training step does: one file for each `method:` of the YAML, the losses, and the gradient step they share."""
