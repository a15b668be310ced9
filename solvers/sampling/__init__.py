"""Running a table: the sampler, where a run starts, grids measured by a pilot run, fitted tables."""
