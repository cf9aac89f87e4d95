"""One file for each kind of machine: `HARDWARE`, its published numbers with their sources, and what suits its compiler."""
