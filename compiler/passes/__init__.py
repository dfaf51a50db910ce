"""Graph passes: each file is one rewrite, stated in the first line of its docstring."""
