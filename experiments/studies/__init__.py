"""Shapes of experiments that the paper repeats on several problems."""
