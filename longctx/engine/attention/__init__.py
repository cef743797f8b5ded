"""Attention over the cache: pieces that fused kernels can do, merged exactly by log-sum-exp."""
