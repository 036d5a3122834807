"""Internal. Jobs: the work of a backend, as tables of addresses."""
