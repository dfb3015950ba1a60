"""The kernels for GPUs. The door is the functions of `kernels` itself, which choose between the two forms."""
