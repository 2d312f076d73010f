"""Labelled images: sets by name, or the user's own arrays."""
