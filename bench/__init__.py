"""NFE against quality, likelihood and kernels, with the peers in the same run."""
