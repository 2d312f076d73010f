"""Anybody's Keras classifier: found, loaded without its code, made ready, run and judged."""
