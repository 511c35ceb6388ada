"""From files to batches: what a task is, where its rows lie, their tokens, and the order in which they come."""
