"""The package's shape, read from its source: who imports whom, how long, and what happens at import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ollama_metrics

PACKAGE = Path(ollama_metrics.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
every_module = pytest.mark.parametrize("module", MODULES)

# OllamaGPUMonitor, for other programs: what it costs is no matter of the daemon's, which never imports it.
LIBRARY = ("monitor", "monitor_sources", "monitor_values", "single_flight")

MOST_LINES = 400
# What may be done when a module is imported does not touch the world outside; these can.
WORLD = {
    *("open", "print", "input", "exec", "eval", "os", "socket", "select", "signal", "subprocess"),
    *("time", "threading", "ctypes", "psutil", "pynvml", "resource", "shutil", "pathlib", "sys"),
}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text("utf-8"))


def running(node: ast.AST, functions: bool = True) -> Iterator[ast.AST]:
    """The nodes below `node` that run when it is imported and, with `functions`, when it is used."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield other
                yield from running(other, functions)
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "__name__ == '__main__'":
            continue
        if not functions and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            # Its decorators and defaults are evaluated at import all the same.
            for part in (*getattr(child, "decorator_list", ()), child.args):
                yield from running(part, functions)
            continue
        yield child
        yield from running(child, functions)


def imported(module: str, functions: bool = True) -> set[str]:
    """The modules that this one imports while it runs; our own by their short name after a dot."""
    return imported_by(tree(module), functions)


def imported_by(tree: ast.AST, functions: bool = True) -> set[str]:
    """The same of any part of a module."""
    names = set()
    for node in running(tree, functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                names.add(str(node.module))
            elif node.module:
                names.add("." + node.module)
            else:
                names |= {
                    "." + (alias.name if alias.name in MODULES else "__init__")
                    for alias in node.names
                }
    return names


def own(module: str, functions: bool = True) -> set[str]:
    # The package itself has a function that imports the library when a user asks for a name of it;
    # whoever imports the package for its version does not.
    functions = functions and module != "__init__"
    return {name[1:] for name in imported(module, functions) if name.startswith(".")}


def reachable(module: str) -> set[str]:
    """What importing this module brings along, of the package."""
    found: set[str] = set()
    queue = [module]
    while queue:
        for name in own(queue.pop(), functions=False) - found:
            found.add(name)
            queue.append(name)
    return found


# -- imports -----------------------------------------------------------------------------------------------------------


def test_the_reading_of_imports_sees_something() -> None:
    """The functions above find imports at the top, within functions and relative ones."""
    assert "config" in own("cli")
    assert "config" not in own("cli", functions=False)
    assert "argparse" in imported("cli")
    assert "snapshot" in own("sampler", functions=False)
    assert "endpoints" not in own("status_log")  # only for type checkers
    assert len(MODULES) > 20


def test_imports_form_no_circle() -> None:
    """No module imports, over whatever detour and be it within a function, a module that imports it."""
    left = {module: own(module) for module in MODULES}
    while left:
        leaves = {module for module, names in left.items() if not names}
        assert leaves, f"a circle among {sorted(left)}"
        left = {module: names - leaves for module, names in left.items() if module not in leaves}


def test_the_command_is_at_the_top_and_the_grammar_at_the_bottom() -> None:
    """Only __main__ imports cli; errors and the like import nothing of the package, metrics only frozen."""
    assert [module for module in MODULES if "cli" in own(module)] == ["__main__"]
    for module in ("errors", "frozen", "backoff", "lean", "__init__"):
        assert own(module) == set()
    for module in ("metrics", "window"):
        assert own(module) == {"frozen"}


def test_values_are_made_in_one_way() -> None:
    """Only frozen.py takes the standard library's `dataclass`, which costs thrice the memory."""
    for module in MODULES:
        taken = {
            alias.name
            for node in ast.walk(tree(module))
            if isinstance(node, ast.ImportFrom) and node.module == "dataclasses"
            for alias in node.names
        }
        assert "dataclass" not in taken or module == "frozen", module


@pytest.mark.parametrize(
    ("library", "importers"),
    [
        ("pynvml", ["nvml"]),
        ("psutil", ["devices", "host"]),
        ("argparse", ["cli"]),
        # The daemon's one use of it, and the library's: its own threads, and locks against its users'.
        ("threading", ["monitor", "monitor_sources", "sampler", "single_flight"]),
        ("select", ["conversations", "log", "sampler", "server"]),
    ],
)
def test_a_library_has_one_importer(library: str, importers: list[str]) -> None:
    """What a library is for is one module's business."""
    assert [module for module in MODULES if library in imported(module)] == importers


@pytest.mark.parametrize(
    "module", ["server", "conversations", "plans", "answer", "request", "listener"]
)
def test_the_server_knows_no_metric(module: str) -> None:
    """The event loop and what it is made of bring along no collector, whatever the detour."""
    for name in reachable(module) | own(module):
        assert not name.startswith(("nvml", "gpu"))
        assert name not in ("host", "cgroup", "sampler", "exposition_json", "exposition_text")


@pytest.mark.parametrize(
    "module", ["verdict", "exposition_json", "exposition_text", "window", "metrics", "snapshot"]
)
def test_what_is_pure_imports_nothing_that_is_not(module: str) -> None:
    """Verdict, renderers, windows and values have no way to the clock, the network or a file."""
    assert not imported(module) & (WORLD - {"time"})
    assert "time" not in imported(module)


@every_module
def test_nobody_imports_what_costs_megabytes(module: str) -> None:
    """typing, logging, asyncio and their like are for type checkers or not for us."""
    costly = {"typing", "logging", "asyncio", "ssl", "datetime", "subprocess"}
    # The library's users have an event loop of their own: who has none does not get to that import.
    allowed = {"asyncio"} if module in (*LIBRARY, "fleet") else set()
    assert imported(module) & costly <= allowed
    assert not imported_by(tree(module), functions=False) & costly


def test_the_daemon_knows_nothing_of_the_library() -> None:
    """Whatever the command imports, and be it within a function, is none of the library's modules."""
    used, queue = set(), ["__main__"]
    while queue:
        for name in own(queue.pop()) - used:
            used.add(name)
            queue.append(name)
    assert "gpu_collector" in used
    assert not used & set(LIBRARY)


@every_module
def test_annotations_are_never_evaluated(module: str) -> None:
    """Each module has `from __future__ import annotations`: Python 3.9 knows no `X | None` at run time."""
    if module != "__main__":
        assert "__future__" in imported(module)


def test_a_check_imports_all_that_the_daemon_ever_does() -> None:
    """A program that is broken anywhere fails when a reload tries it, and not when it has been executed."""
    (check,) = (
        node
        for node in ast.walk(tree("cli"))
        if isinstance(node, ast.FunctionDef) and node.name == "_check"
    )
    checked = {name[1:] for name in imported_by(check) if name.startswith(".")}
    checked |= {name for module in checked for name in reachable(module)}
    used, queue = set(), ["daemon"]
    while queue:
        for name in own(queue.pop()) - used:
            used.add(name)
            queue.append(name)
    assert {"nvml", "sampler", "heartbeat", "status_log"} <= used
    assert used - checked == set()


# -- size, names, import time ------------------------------------------------------------------------------------------


@every_module
def test_a_module_has_a_name_that_says_something(module: str) -> None:
    """There is no utils, no common, no helpers."""
    assert not set(module.split("_")) & {
        *("util", "utils", "common", "helper", "helpers", "types", "misc", "base", "core", "lib")
    }


@every_module
def test_a_module_is_short_enough_to_be_read(module: str) -> None:
    """No module is above 400 lines."""
    assert len((PACKAGE / f"{module}.py").read_text("utf-8").splitlines()) <= MOST_LINES


@every_module
def test_a_module_says_what_it_owns(module: str) -> None:
    """Each module begins with a docstring whose first line is a sentence or its beginning."""
    assert (ast.get_docstring(tree(module)) or "")[:1].strip()


def test_the_package_is_flat() -> None:
    """There are modules and no sub-packages."""
    assert [path.name for path in PACKAGE.iterdir() if path.is_dir()] in ([], ["__pycache__"])


@every_module
def test_importing_a_module_does_nothing(module: str) -> None:
    """At module level nothing is called that could touch the world: definitions only."""
    for node in running(tree(module), functions=False):
        if isinstance(node, ast.Call):
            root = node.func
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name):
                assert root.id not in WORLD, f"line {node.lineno}: {ast.unparse(node)}"
        assert not isinstance(node, (ast.With, ast.While, ast.Try, ast.Global)), node
