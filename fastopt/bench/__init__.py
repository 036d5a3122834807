"""What ``fastopt bench`` runs: every rule against its peers and the ceiling of memory, small tensors, digits."""
