"""Figures of the source itself: import circles, sizes, docstrings, names, and the words of user texts."""

from __future__ import annotations

import ast
import graphlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import ossconsole

PACKAGE = Path(ossconsole.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
Function = (ast.FunctionDef, ast.AsyncFunctionDef)
Definition = (*Function, ast.ClassDef)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in TREES}


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module of the package that a module imports: at the top, in functions, and for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def definitions(
    node: ast.AST, *, public: bool = False
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """All functions and classes outside of functions; only the public ones where `public`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition) and not (public and child.name.startswith("_")):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from definitions(child, public=public)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module: {other for other in imported(TREES[path]) if other in MODULES and other != module}
        for module, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_files_and_functions_stay_readable() -> None:
    long_files = {str(path): lines for path in TREES if (lines := len(path.read_text().splitlines())) > 500}
    long_functions = {
        f"{path}: {found.name}": found.end_lineno - found.lineno
        for path, tree in TREES.items()
        for found in definitions(tree)
        if isinstance(found, Function) and found.end_lineno and found.end_lineno - found.lineno > 60
    }
    assert (long_files, long_functions) == ({}, {})


def test_no_handler_calls_that_of_its_base_class() -> None:
    """Textual calls the handlers of all base classes by itself: a call through `super()` runs them twice."""
    called = [
        f"{path.name}:{node.lineno} {node.attr}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.fullmatch(r"_?on_(?!event$|timer_update$)\w+", node.attr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "super"
    ]
    assert called == []


def test_most_public_definitions_have_a_docstring() -> None:
    found = [(path, each) for path, tree in TREES.items() for each in definitions(tree, public=True)]
    without = [f"{path}:{each.lineno} {each.name}" for path, each in found if not ast.get_docstring(each)]
    assert len(without) <= 0.15 * len(found), "\n".join(without)


def test_few_classes_share_a_name() -> None:
    classes = (each for tree in TREES.values() for each in definitions(tree) if isinstance(each, ast.ClassDef))
    names = Counter(each.name for each in classes)
    assert len(shared := [name for name, count in names.items() if count > 1]) <= 5, shared


def names_in(tree: ast.AST, *, within: str = "") -> Iterator[str]:
    """The names of all classes and functions outside of functions; methods as `Class.method`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, Definition):
            yield f"{within}{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from names_in(child, within=f"{child.name}.")


def test_the_readme_names_files_and_definitions_that_exist() -> None:
    readme = (PACKAGE.parent / "README.md").read_text()
    found = re.findall(r"`([a-z_/]+\.py)`(?::\s+`([A-Za-z_.]+)`)?", readme)
    assert len(found) > 30
    wrong = [
        (file, name)
        for file, name in found
        if not (PACKAGE / file).exists() or (name and name not in names_in(TREES[PACKAGE / file]))
    ]
    assert wrong == []


_PRIVATE_WORDS = re.compile(
    r"\b(told|tells?|chosen|choose|go(es)? on|so many|(?<!there )is no(?! longer)|anew|amiss|whoever|heed|at once)\b"
    r"|\b(asked for|takes it|prov(e|es|en|ing)|the one that leads|look(s|ed)? again)\b|[«»]",
    re.IGNORECASE,
)


def user_texts(tree: ast.Module) -> Iterator[ast.Constant]:
    """The string constants of a module that are not docstrings."""
    documents = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node


def test_user_texts_use_standard_words() -> None:
    found = [
        f"{path}:{text.lineno} {text.value!r}"
        for path, tree in TREES.items()
        for text in user_texts(tree)
        if _PRIVATE_WORDS.search(str(text.value))
    ]
    assert found == [], "\n".join(found)
