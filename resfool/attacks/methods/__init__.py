"""Methods of attack along loss gradients, one in a file; `options.METHODS` lists them."""
