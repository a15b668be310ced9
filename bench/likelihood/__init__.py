"""`undiffuse bench likelihood`: densities against exact ones and against the peers' way."""
