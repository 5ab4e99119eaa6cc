"""Compiled loops: numba, on plain threads, without the interpreter lock.

Two habits halve the time of compiling them. Small functions are `forceinline=True`: numba compiles them once and LLVM
puts them into their callers, where `inline="always"` would have numba type and compile a copy for every call. And a
number that starts as a constant and goes to another kernel starts as `np.int64(0)`: given a plain 0, numba compiles
that kernel for the constant, and then for any integer. `pipeline.executor.compile_kernels` lists those that Python
calls."""
