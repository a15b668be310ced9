"""Runs of strangers as rows of one batch."""
