"""Other libraries' samplers and likelihoods, in the same run on the same problems."""
