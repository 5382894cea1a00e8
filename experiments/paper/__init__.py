"""The paper's elements, one file each."""
