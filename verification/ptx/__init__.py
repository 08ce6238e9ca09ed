"""A functional emulator for PTX as the device of Triton: compiled kernels run on CPU tensors, and are checked.

See README.md. Nothing here imports the project around it.
"""
