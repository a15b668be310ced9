"""The commands, one a module: what it does (the docstring's first line), its options, its run.

KEPT says what is left of a run that was interrupted, and how to go on.
"""

from . import bench, fid, likelihood, sample, solvers, statistics, train, tune

COMMANDS = (sample, likelihood, bench, fid, train, tune, statistics, solvers)
