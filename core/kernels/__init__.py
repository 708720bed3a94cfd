"""Our own GPU kernels: one source for CUDA, Metal and, in the tests, C++."""
