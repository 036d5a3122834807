"""Arrays of any library: where they are, what they hold, how they are laid out."""
