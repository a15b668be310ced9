"""The commands, one a module: what it does (the docstring's first line), its options, its run.

KEPT says what is left of a run that was interrupted, and how to go on. EXAMPLES are shown below the
options. No module imports torch before its `run`.
"""

COMMANDS = (
    "sample",
    "check",
    "which",
    "tune",
    "likelihood",
    "bench",
    "fid",
    "train",
    "solvers",
    "statistics",
    "completion",
)
