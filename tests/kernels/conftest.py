"""Tests of the Triton path are skipped where there is no Triton that runs it."""

import pytest

from undiffuse.kernels.dispatch import without_triton


def pytest_collection_modifyitems(items):
    reason = without_triton()
    if reason is None:
        return
    for item in items:
        params = item.callspec.params.values() if hasattr(item, "callspec") else ()
        forced = any(isinstance(value, str) and value == "triton" for value in params)
        if forced or item.get_closest_marker("triton"):
            item.add_marker(pytest.mark.skip(reason=reason))
