"""Internal. The binding of arrays to a step: checks, states, norms, and whether the arrays are still in place."""
