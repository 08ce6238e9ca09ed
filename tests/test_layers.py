"""Layers: vitcop_kernels <- vitcop <- benchmarks, verification, studies; and no circle of imports anywhere."""

import grimp
import pytest

LEAVES = ("benchmarks", "verification", "studies")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("vitcop_kernels", "vitcop", *LEAVES, exclude_type_checking_imports=True, cache_dir=None)


def test_lower_layers_import_no_higher_one(graph: grimp.ImportGraph) -> None:
    for lower, higher in [
        ("vitcop_kernels", "vitcop"),
        *((low, leaf) for leaf in LEAVES for low in ("vitcop_kernels", "vitcop")),
    ]:
        assert not graph.find_shortest_chains(importer=lower, imported=higher, as_packages=True), f"{lower} -> {higher}"
    for leaf in LEAVES:
        for other in set(LEAVES) - {leaf}:
            assert not graph.find_shortest_chains(importer=leaf, imported=other, as_packages=True), f"{leaf} -> {other}"


@pytest.mark.parametrize("package", ["vitcop_kernels", *LEAVES])
def test_there_is_no_circle_of_imports(graph: grimp.ImportGraph, package: str) -> None:
    modules = [module for module in graph.modules if module.split(".")[0] == package]
    for module in modules:
        for other in graph.find_modules_directly_imported_by(module):
            if other == module:
                continue
            chain = graph.find_shortest_chain(importer=other, imported=module, as_packages=False)
            assert chain is None, " -> ".join([module, *chain])
