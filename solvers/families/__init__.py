"""The solvers, family by family: each a dataclass that fills a table, named in `registry`."""
