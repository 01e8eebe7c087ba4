"""One question per file, answered as a ratio within one run."""
