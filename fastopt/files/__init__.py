"""Internal. States in files, and their way through a bounded memory."""
