"""What a training step costs: time and memory, beside the step as the authors released it."""
