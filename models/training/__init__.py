"""Training a network: objectives, the variational bound, score matching, the loop and its state."""
