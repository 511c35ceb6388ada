"""Pictures of a run, of a table, and of learning curves, drawn from what runs have written."""
