"""Between the faces and the jobs: what a step is bound to, and whether it still is."""
