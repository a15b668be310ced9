"""Samples in shards: drawn by any number of processes, written as they are drawn."""
