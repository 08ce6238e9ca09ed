"""transformers' own tests of a model, from its source distribution, on each family under pruning that keeps everything.

`python tests/transformers_own.py [FOLDER [PYTEST ARGUMENTS]]` fetches the sdist of the transformers that is installed
(pip, nothing is copied into this repository) and runs its `ModelTesterMixin` on the tiny models of tests/adapters under
`Uniform(retention=1.0)`, and what fails there once more on the models as they are. More failures than those are ours;
a refusal is none. One family takes about four minutes: `python tests/transformers_own.py build -k Test_llava`.
"""

import copy
import os
import subprocess
import sys
import tarfile
import types
import unittest
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).resolve()
PRUNED, SOURCES = "VITCOP_PRUNED", "VITCOP_TRANSFORMERS"
SKIPPED = {
    "test_eager_matches_sdpa_inference": "it gives placeholders without images, which pruning refuses (ValueError)",
}
"""Beginnings of the names of tests that cannot hold under pruning, and why."""


def main(folder: Path, options: list[str]) -> int:
    import transformers

    version = transformers.__version__
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
    wanted = ["--no-binary", "transformers", "--no-build-isolation", "-d", str(folder), f"transformers=={version}"]
    subprocess.run([*pip, *wanted], check=True)
    subprocess.run([*pip[:4], "install", "-q", "--target", str(folder / "site"), "parameterized"], check=True)
    with tarfile.open(folder / f"transformers-{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    failures = outcomes(folder, version, "1", [str(HERE), *options])
    failing = [name for name, count in failures.items() if count]
    again = [f"{HERE}::{name}" for name in failing]
    unpruned = outcomes(folder, version, "0", again) if again else Counter()
    broken = [name for name in failing if failures[name] > unpruned[name]]
    print(
        f"transformers {version}: {len(failures) - len(failing)} tests pass under pruning, "
        f"{len(failing) - len(broken)} fail as they do unpruned, {len(broken)} fail under pruning alone"
    )
    for name in broken:
        print(f"  {name}")
    return bool(broken) or len(failures) == len(failing)


def outcomes(folder: Path, version: str, pruned: str, wanted: list[str]) -> "Counter[str]":
    """Failures, subtests counted, of the tests that ran and were not skipped."""
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
    subprocess.run([*command, "--import-mode=importlib", f"--junitxml={result}", *wanted], env=os.environ | settings)
    found: Counter[str] = Counter()
    for case in ElementTree.parse(result).iter("testcase"):
        tags = [child.tag for child in case]
        if "skipped" not in tags:
            name = f"{(case.get('classname') or '').rpartition('.')[2]}::{case.get('name')}"
            found[name] += tags.count("failure") + tags.count("error")
    return found


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
        test: Any = type(f"Test_{key}", (ModelTesterMixin, unittest.TestCase), body)
        globals()[f"Test_{key}"] = test
        if os.environ[PRUNED] == "1":
            for start, reason in SKIPPED.items():
                for name in filter(lambda name, start=start: name.startswith(start), dir(test)):
                    setattr(test, name, unittest.skip(reason)(getattr(test, name)))
            for name in ("__call__", "generate"):
                setattr(type(model), name, within_pruning(getattr(type(model), name)))

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve(), sys.argv[2:]))
