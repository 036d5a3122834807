"""Internal. ``fastopt bench``: every rule against its peers and the ceiling of memory, small tensors, digits."""
