"""One thread (the suite runs on shared machines) and Triton's interpreter where there is no GPU."""

import os

import pytest
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # read by triton at import time, which undiffuse delays until a kernel is first asked for
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _the_same_draws_in_any_order():
    """Tests that draw by torch's own generator draw the same numbers, whichever ran before."""
    torch.manual_seed(0)
