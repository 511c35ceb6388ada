"""One configuration, run: what it needs is built and checked, trained, and written into its folder; or only planned."""
