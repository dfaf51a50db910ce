"""Kernel templates (Jinja2) and the headers that they instantiate."""
