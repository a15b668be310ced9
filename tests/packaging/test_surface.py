"""The public surface: what `dir` shows is what is promised, it is few, and `help` says what it
is."""

import inspect

import pytest

import undiffuse as ud

NAMESPACES = {
    "ud": (ud, 34),
    "ud.solvers": (ud.solvers, 72),
    "ud.solvers.adaptive": (ud.solvers.adaptive, 16),
    "ud.solvers.grids": (ud.solvers.grids, 16),
    "ud.solvers.law": (ud.solvers.law, 16),
    "ud.solvers.likelihood": (ud.solvers.likelihood, 16),
    "ud.solvers.tuning": (ud.solvers.tuning, 16),
    "ud.models": (ud.models, 40),
    "ud.kernels": (ud.kernels, 24),
    "ud.guidance": (ud.guidance, 16),
}


@pytest.mark.parametrize("name", NAMESPACES)
def test_dir_is_what_is_promised_and_few_names(name):
    namespace, most = NAMESPACES[name]
    assert sorted(dir(namespace)) == sorted(namespace.__all__)
    assert len(set(namespace.__all__)) == len(namespace.__all__) <= most
    for member in namespace.__all__:
        getattr(namespace, member)


@pytest.mark.parametrize("name", [n for n in NAMESPACES if n.startswith("ud.solvers")])
def test_help_says_what_each_name_is(name):
    namespace, _ = NAMESPACES[name]
    for member in namespace.__all__:
        value = getattr(namespace, member)
        if isinstance(value, dict):  # a registry: help shows dict's own text
            continue
        text = inspect.getdoc(value) or ""
        # dataclasses without a docstring get their signature as one
        assert len(text.split()) > 3 and not text.startswith(f"{member}("), f"{name}.{member}"


def test_every_solver_class_of_the_registry_is_at_hand():
    for solver in map(ud.solvers.get, ud.solvers.names()):
        assert type(solver).__name__ in ud.solvers.__all__, type(solver)
