"""Mutation testing: bugs planted in references and checks, in C++ and in Triton, against the ops' own tests.

Python is mutated through its syntax tree (python_bugs.py: why not by mutmut), C++ and Triton kernels by hand-written
bugs (cpp_bugs.py, triton_bugs.py). One runner for all, so that each fate is told in the same way. Everything happens in
a copy of the tree.
"""

from typing import Any


def section(found: dict[str, Any]) -> str:
    from . import page  # not before: it loads vitcop_kernels, and the tests of a mutant are to load the mutant

    return page.section(found)
