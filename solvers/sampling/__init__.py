"""Running a table: the sampler, where a run starts, pilot grids, fitted and learned tables."""
