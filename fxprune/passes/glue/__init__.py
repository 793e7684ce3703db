"""Models with data-dependent Python glue: capture, the module that runs them, verification."""
