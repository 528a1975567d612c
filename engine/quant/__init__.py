"""Weights in fewer bits: how they are held, and the formats of checkpoints that are read."""
