"""`undiffuse bench orders`: the order of every solver, measured, beside what it declares."""
