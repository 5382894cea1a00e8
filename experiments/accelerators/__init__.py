"""The sharded training step under the compilers of a TPU and a GPU, which need neither: `make check-accelerators`."""
