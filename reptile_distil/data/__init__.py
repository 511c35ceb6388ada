"""From rows to batches: what a task is, its rows and their tokens, and the order in which they come."""
