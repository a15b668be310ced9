"""Densities: log p by the probability flow, its trace and error bars, bounds, bits a dimension."""
