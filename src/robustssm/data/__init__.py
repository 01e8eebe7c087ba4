"""Data sets: one source each, read from files the user points at, and batches of them."""
