"""The whole paper: the runs that its results need, and its claims."""
