"""Linear maps in a graph: convolutions, linear layers, batch norms, and what they make together."""
