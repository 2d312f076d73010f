"""Many trainings in parallel: grids, and searches for better settings."""
