"""Steps of the solver's own choice, sample by sample: embedded pairs, the flow and the reverse SDE."""
