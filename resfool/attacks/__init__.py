"""Attacks: plain functions on arrays and a Keras classifier, one algorithm per file."""
