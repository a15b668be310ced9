"""Data sets by name or path, as one float32 tensor of events, and their held-out split."""

from .sets import Data, load, split, split_indices

__all__ = ["Data", "load", "split", "split_indices"]
