"""Internal. Arrays of any library: address, layout, dtype."""
