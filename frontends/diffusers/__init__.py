"""Models of the diffusers library: from a folder, without loading the weights, and by their class."""
