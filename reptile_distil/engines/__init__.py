"""Who runs many jobs: this process, a Ray cluster or Slurm, behind one interface in the style of concurrent.futures.

An engine knows nothing of tables. A job is a function with its arguments, whose result is a value: an exception that is
returned is a failure (not every engine carries one that is raised), and None means `not now`: another process is at it.
"""
