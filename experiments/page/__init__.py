"""The reading side: committed results to numbers, tables and drawings. No jax."""
