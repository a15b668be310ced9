"""Runs that leave this library: a table in a file, and a whole run as one module. And tables of
others that come into it, from their files or as they are printed."""
