"""Experiments that reproduce the paper: `python -m experiments NAME [options]`."""
