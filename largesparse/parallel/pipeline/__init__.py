"""Layers divided over ranks: each owns consecutive layers, and micro-batches pass through them."""
