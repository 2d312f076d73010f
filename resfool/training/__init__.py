"""Training one network (sections III to V)."""
