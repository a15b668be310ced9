"""The solvers themselves, family by family, each a dataclass that fills a table; `registry` has their names."""
