"""ResNets: easy to train, easy to fool? Train image classifiers and measure how they are fooled."""

__version__ = "0.1.0"
