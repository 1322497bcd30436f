"""Text that every Python brings along, as a corpus for trials."""
