"""Data sets in source units, and the transforms between those and what a model sees."""
