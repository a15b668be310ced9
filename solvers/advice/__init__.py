"""Answers about a network: which solver suits it, and whether it is what its `Denoiser` says."""
