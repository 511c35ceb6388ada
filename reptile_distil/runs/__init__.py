"""The folder of a run: what is in it, its checkpoints, how a run goes on, what its results look like."""
