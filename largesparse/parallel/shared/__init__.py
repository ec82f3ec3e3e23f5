"""What the ranks of a node share: segments of memory, data, weights, slots."""
