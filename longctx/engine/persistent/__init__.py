"""Decoding one token in one launch of one CUDA kernel, where the GPU and the model allow it."""
