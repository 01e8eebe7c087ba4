"""The hand-tuned forms of operations, imported by the operation that each serves."""
