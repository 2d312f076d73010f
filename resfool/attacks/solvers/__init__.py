"""Solvers of the smallest perturbation, one in a file."""
