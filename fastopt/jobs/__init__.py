"""Jobs: what a backend is told to do, as tables of addresses."""
