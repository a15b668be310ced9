"""Runs that leave this library: a table in a file, and a whole run as one module."""
