"""One forward of a decoder under pruning, from the layout of a prompt to what is left on its cache."""
