"""The loop that takes a method's steps, evaluates after each epoch, and reports to callbacks and trackers."""
