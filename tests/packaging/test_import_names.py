"""Only `pippin.*` is importable, and all of it.

These tests hold for an editable install and for a wheel.
"""

import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

PACKAGES = ("pippin.cli", "pippin.configs", "pippin.core", "pippin.server")


@pytest.mark.parametrize("name", ["cli", "configs", "core", "server"])
def test_folders_of_the_repository_are_no_import_names(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is None, f"{name} is importable from {spec}"


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_have_a_docstring_and_nothing_else(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert source.strip() == f'"""{module.__doc__}"""'


@pytest.mark.parametrize("name", ["pippin.cli", "pippin.core", "pippin.server"])
def test_types_are_announced(name: str) -> None:
    module = importlib.import_module(name)
    assert (Path(str(module.__file__)).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", PACKAGES)
def test_every_module_has_a_spec(name: str) -> None:
    package = importlib.import_module(name)
    found = [module.name for module in pkgutil.walk_packages(package.__path__, f"{name}.")]
    assert all(importlib.util.find_spec(module) is not None for module in found)
