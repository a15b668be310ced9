"""Forward processes x_t = alpha(t) x_0 + sigma(t) eps: what the noise does to the data."""
