"""Tests of the Triton path are skipped where there is no Triton that runs it."""

import pytest

from undiffuse.kernels.dispatch import without_triton


def pytest_collection_modifyitems(items):
    reason = without_triton()
    if reason is None:
        return
    for item in items:
        named = getattr(item, "callspec", None)
        forced = named is not None and "triton" in named.params.values()
        if forced or item.get_closest_marker("triton"):
            item.add_marker(pytest.mark.skip(reason=reason))
