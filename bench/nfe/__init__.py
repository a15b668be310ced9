"""`undiffuse bench nfe`: calls of the network against the quality of what they make."""
