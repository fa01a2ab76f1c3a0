"""One paper, one file; METHODS lists them by hand."""
