"""How it is integrated: tableaus, grids, solver families, the sampler, likelihood."""
