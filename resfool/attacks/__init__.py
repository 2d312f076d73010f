"""Attacks on any Keras classifier: along gradients, and the smallest perturbation of each image."""
