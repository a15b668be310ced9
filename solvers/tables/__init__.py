"""A solver is a table: its rows, the grids they are laid on, and the law of what they make."""
