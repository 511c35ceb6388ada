"""Many tasks, methods and seeds: the cells, who runs them, the statistics, and the table in all its forms."""
