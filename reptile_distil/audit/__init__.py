"""Whether one teacher teaches better than another: what a single step from each is worth to the same student."""
