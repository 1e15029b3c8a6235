"""The structure: who may import whom, no circles, no crowded folder."""

import ast
import pathlib

import pytest

from tests.support import ROOT

# Each room imports only from rooms in a row above its own, or from its own.
ROWS = [
    {"hqc_tf", "hqc_tf.errors", "hqc_tf._keras2"},
    {"hqc_tf.config", "hqc_tf.files", "hqc_tf.numerics"},
    {"hqc_tf.commands", "hqc_tf.runners", "hqc_tf.data"},
    {
        "hqc_tf.backbones",
        "hqc_tf.quantizer",
        "hqc_tf.losses",
        "hqc_tf.distribute",
        "hqc_tf.optimizers",
        "hqc_tf.model",
        "hqc_tf.retrieval",
        "hqc_tf.metrics",
        "hqc_tf.label_free",
        "hqc_tf.prepare",
    },
    {"hqc_tf.baselines"},
    {"hqc_tf.workdir"},
    {"hqc_tf.training"},
    {"hqc_tf.embed", "hqc_tf.train", "hqc_tf.evaluate", "hqc_tf.report", "hqc_tf.__main__"},
    {
        "export",
        "export.arrays",
        "export.folders",
        "export.kept",
        "export.results",
        "export.versions",
    },
    {"export.codes", "export.encoder", "export.results", "export.saved_model"},
    {"export.encode", "export.index"},
    {"export.search", "export.searcher", "export.gallery", "export.client", "export.duplicates"},
    {"export.browse", "export.__main__"},
    # Its name is users'; it runs what both packages have.
    {"hqc_tf.collection"},
]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("hqc_tf", "export")
    for path in (ROOT / package).rglob("*.py")
}


def room(module: str) -> str:
    """The package or module of hqc_tf or export that a module is, or is in."""
    return ".".join(module.split(".")[:2])


def row(module: str) -> int:
    return next(number for number, rooms in enumerate(ROWS) if room(module) in rooms)


def imported(tree: ast.AST) -> set[str]:
    """Modules of this project that the nodes of a tree import."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in MODULES}


def imports(module: str) -> set[str]:
    own = imported(ast.parse(MODULES[module].read_text()))
    # `from hqc_tf import errors` names the package only on its way.
    return {name for name in own if not any(other.startswith(f"{name}.") for other in own)}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_come_from_above(module):
    # The lazy face names its rooms as text, so that nothing below is imported with the package.
    wrong = [name for name in imports(module) if row(name) > row(module)]
    assert not wrong
    assert not [name for name in imports(module) if name.endswith("__main__")]


def test_no_module_imports_itself_in_a_circle():
    graph = {module: imports(module) - {module} for module in MODULES}
    while ready := [module for module, needs in graph.items() if not needs & graph.keys()]:
        for module in ready:
            del graph[module]
    assert not graph


def test_no_folder_is_crowded():
    folders = {path.parent for path in MODULES.values()}
    counts = {folder: len([*pathlib.Path(folder).glob("*.py")]) for folder in folders}
    assert max(counts.values()) <= 20
