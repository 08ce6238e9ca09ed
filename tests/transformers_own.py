"""transformers' own tests of a model, from its source distribution, on each family under pruning that keeps everything.

`python tests/transformers_own.py [FOLDER]` fetches the sdist of the transformers that is installed (pip, nothing is
copied into this repository) and runs its `ModelTesterMixin` on the tiny models of tests/adapters twice: as they are,
and under `Uniform(retention=1.0)`. A test that passes alone the first time is a failure; a refusal is none.
"""

import copy
import os
import subprocess
import sys
import tarfile
import types
import unittest
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).resolve()
PRUNED, SOURCES = "VITCOP_PRUNED", "VITCOP_TRANSFORMERS"


def main(folder: Path) -> int:
    import transformers

    version = transformers.__version__
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
    wanted = ["--no-binary", "transformers", "--no-build-isolation", "-d", str(folder), f"transformers=={version}"]
    subprocess.run([*pip, *wanted], check=True)
    subprocess.run([*pip[:4], "install", "-q", "--target", str(folder / "site"), "parameterized"], check=True)
    with tarfile.open(folder / f"transformers-{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    passed, failed = outcomes(folder, version, "0")[0], outcomes(folder, version, "1")[1]
    broken = sorted(passed & failed)
    print(
        f"{len(passed)} tests of transformers {version} pass unpruned; under pruning fail: {broken or 'none of them'}"
    )
    return bool(broken) or not passed


def outcomes(folder: Path, version: str, pruned: str) -> tuple[set[str], set[str]]:
    """Names of the tests that pass, and of those that fail."""
    sources, result = folder / f"transformers-{version}", folder / f"pruned-{pruned}.xml"
    paths = [
        sources,
        HERE.parent / "adapters",
        HERE.parent,
        HERE.parents[1],
        HERE.parents[1] / "python",
        folder / "site",
    ]
    settings = {PRUNED: pruned, SOURCES: str(sources), "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", "--tb=no"]
    subprocess.run([*command, "--import-mode=importlib", f"--junitxml={result}", HERE], env=os.environ | settings)
    cases = {
        f"{case.get('classname')}::{case.get('name')}": case for case in ElementTree.parse(result).iter("testcase")
    }
    failed = {name for name, case in cases.items() if {child.tag for child in case} & {"failure", "error"}}
    return {name for name, case in cases.items() if not {"failure", "error", "skipped"} & {c.tag for c in case}}, failed


def within_pruning(original: Any) -> Any:
    """A method of a model, called with the model under pruning."""
    import vitcop

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "pruning" in vars(self):
            return original(self, *args, **kwargs)
        self.pruning = True
        try:
            with vitcop.prune(self, vitcop.Uniform(retention=1.0)):
                return original(self, *args, **kwargs)
        except NotImplementedError as error:
            raise unittest.SkipTest(f"refused: {error}") from None
        finally:
            del self.pruning

    return call


if SOURCES in os.environ:
    for missing, mixin in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        sys.modules[f"tests.{missing}"] = types.ModuleType(missing)
        setattr(sys.modules[f"tests.{missing}"], mixin, type(mixin, (), {}))
    sys.modules["tests"] = types.ModuleType("tests")
    sys.modules["tests"].__path__ = [str(Path(os.environ[SOURCES]) / "tests")]
    from families import FAMILIES
    from tests.test_modeling_common import ModelTesterMixin

    for key, family in FAMILIES.items():
        model = family.build(layers=2)
        inputs = family.batch([family.prompt(1), family.prompt(1, seed=1)])
        prepare = lambda config=model.config, inputs=inputs: (copy.deepcopy(config), copy.deepcopy(inputs))  # noqa: E731
        tester = types.SimpleNamespace(
            prepare_config_and_inputs_for_common=prepare, batch_size=2, is_training=True, num_hidden_layers=2,
            seq_length=inputs["input_ids"].shape[1], num_attention_heads=4, hidden_size=64,
        )  # fmt: skip
        body = {"model_tester": tester, "all_model_classes": (type(model),), "_is_composite": True}
        globals()[f"Test_{key}"] = type(f"Test_{key}", (ModelTesterMixin, unittest.TestCase), body)
        if os.environ[PRUNED] == "1":
            for name in ("__call__", "generate"):
                setattr(type(model), name, within_pruning(getattr(type(model), name)))

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve()))
