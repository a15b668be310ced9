"""`undiffuse bench kernels`: the fused steps against memory, PyTorch and the peers."""
