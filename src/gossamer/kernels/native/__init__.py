"""Native kernels for contiguous float32 planes on the CPU, one file for each kind."""
