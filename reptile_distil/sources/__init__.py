"""Where the rows of a split are read: GLUE's files, a user's own, folders of `datasets`, the hub, or a generator."""
