"""What the networks are: their shapes, their rules and the layer that Keras lacks."""
