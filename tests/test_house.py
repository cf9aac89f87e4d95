"""The house rules, read from the syntax tree: who may import whom, what stays free of JAX, sizes and names of files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Package -> what of ours it may import beside itself. An entry with a dot allows that one module.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "config": (),
    "vocab": ("config", "data.storage"),
    "metrics": ("config",),
    "parallel": ("config", "monitor"),
    "monitor": ("config",),
    "clusters": ("config", "monitor", "parallel.cluster"),
    "data": ("config", "vocab"),
    "tasks": ("config", "vocab", "data", "metrics"),
    "prepare": ("config", "vocab", "metrics", "data", "tasks"),
    "models": ("config", "parallel"),
    "checkpoint": ("config", "parallel", "__version__"),
    "decode": ("config", "parallel", "models", "vocab.trie"),
    "convert": ("config", "vocab", "parallel", "models", "checkpoint"),
    "train": ("config", "vocab", "parallel", "models", "decode", "checkpoint", "monitor", "data.batch"),
    "bench": (
        "config",
        "vocab",
        "metrics",
        "parallel",
        "models",
        "decode",
        "checkpoint",
        "convert",
        "train",
        "monitor",
        "data.batch",
        "eval.rewards",
    ),
    "pods": ("config", "parallel", "models", "decode", "train", "eval.programs"),
    "doctor": (
        "config",
        "vocab",
        "parallel",
        "data",
        "tasks",
        "prepare",
        "models",
        "checkpoint",
        "train",
        "monitor",
        "pods",
        "bench.noise",
    ),
    "eval": ("config", "parallel", "vocab", "metrics", "data", "tasks", "models", "decode", "checkpoint", "monitor", "train.reward"),
}
NUMPY_SIDE = ("vocab", "metrics", "data", "tasks", "prepare")
BANNED_NAMES = {"utils", "util", "common", "misc", "helpers", "helper"}
MAX_LINES, MANY_LINES, MAX_LAUNCH_LINES = 800, 500, 150


def _sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, module) for every import of the file, those inside functions too; `from a import b` gives `a.b` as well as `a`."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def _is_within(module: str, of: str) -> bool:
    return module == of or module.startswith(of + ".")


def test_every_package_is_in_the_import_table():
    found = {path.name for path in (ROOT / "ofa_jax").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert found <= set(MAY_IMPORT)


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_imports_only_what_it_may(package: str):
    faults = []
    for path in _sources(f"ofa_jax/{package}"):
        for line, module in _imports(path):
            if _is_within(module, "launch") or _is_within(module, "configs") or _is_within(module, "tests"):
                faults.append(f"{_name(path)}:{line} imports {module}")
            elif _is_within(module, "ofa_jax"):
                inner = module.removeprefix("ofa_jax.")
                if not any(_is_within(inner, allowed) for allowed in (package, *MAY_IMPORT[package])):
                    faults.append(f"{_name(path)}:{line} imports {module}, allowed are {MAY_IMPORT[package]}")
    assert not faults


def test_configs_import_only_the_config_package_and_each_other():
    faults = [
        f"{_name(path)}:{line} imports {module}"
        for path in _sources("configs")
        for line, module in _imports(path)
        if not (_is_within(module, "ofa_jax.config") or _is_within(module, "configs") or module.split(".")[0] in sys.stdlib_module_names)
    ]
    assert not faults


def test_the_numpy_side_never_names_jax():
    banned = ("jax", "jaxlib", "flax", "optax", "orbax")
    faults = [
        f"{_name(path)}:{line} imports {module}"
        for path in _sources(*(f"ofa_jax/{package}" for package in NUMPY_SIDE))
        for line, module in _imports(path)
        if any(_is_within(module, name) for name in banned)
    ]
    assert not faults


def test_nothing_imports_tensorflow():
    faults = [
        f"{_name(path)}:{line} imports {module}"
        for path in _sources("ofa_jax", "configs", "launch")
        for line, module in _imports(path)
        if _is_within(module, "tensorflow")
    ]
    assert not faults


def test_orbax_is_imported_where_checkpoints_are_written_and_read_alone():
    users = {
        _name(path) for path in _sources("ofa_jax", "launch", "configs") for _, module in _imports(path) if _is_within(module, "orbax")
    }
    assert users <= {"ofa_jax/checkpoint/manager.py", "ofa_jax/checkpoint/reading.py"}


def test_only_the_page_imports_its_server():
    users = {
        _name(path)
        for path in _sources("ofa_jax", "launch", "configs")
        for _, module in _imports(path)
        if any(_is_within(module, name) for name in ("gradio", "starlette", "fastapi", "uvicorn"))
    }
    assert users <= {"ofa_jax/eval/page.py"}


def test_no_file_is_too_long():
    lengths = {_name(path): len(path.read_text().splitlines()) for path in _sources("ofa_jax", "configs", "launch", "tests")}
    for name, lines in lengths.items():
        if lines > MANY_LINES:
            warnings.warn(f"{name} has {lines} lines, more than {MANY_LINES}: consider splitting it", stacklevel=1)
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_file_or_folder_is_a_drawer():
    paths = [path.relative_to(ROOT) for path in _sources("ofa_jax", "configs", "launch", "tests")]
    assert [str(path) for path in paths if BANNED_NAMES & {part.removesuffix(".py").removeprefix("test_") for part in path.parts}] == []


def test_launch_files_are_thin_and_have_names_of_their_own():
    files = sorted((ROOT / "launch").rglob("*.py"))
    assert files
    assert [path.name for path in files if path.stem in sys.stdlib_module_names] == []
    assert {path.name: n for path in files if (n := len(path.read_text().splitlines())) > MAX_LAUNCH_LINES} == {}
    classes = [f"{path.name}: {node.name}" for path in files for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    assert classes == []


def test_every_package_folder_says_what_it_is():
    folders = {path.parent for path in _sources("ofa_jax", "configs")}
    missing = [_name(folder) for folder in folders if not (folder / "__init__.py").is_file()]
    assert missing == []
    assert [_name(f) for f in sorted(folders) if not ast.get_docstring(ast.parse((f / "__init__.py").read_text()))] == []


def test_every_module_has_a_docstring():
    modules = [path for path in _sources("ofa_jax", "configs", "launch") if path.name != "__init__.py"]
    assert [_name(path) for path in modules if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_every_public_function_has_a_docstring():
    missing = []
    for path in _sources("ofa_jax", "configs"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                # The schema's groups of plain fields say everything in their fields.
                if _name(path) != "ofa_jax/config/schema.py" and not _is_plain_record(node):
                    missing.append(f"{_name(path)}:{node.lineno} {node.name}")
    assert missing == []


def _is_plain_record(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and all(isinstance(item, ast.AnnAssign) for item in node.body)


def test_no_bare_except_and_no_swallowed_exception():
    faults = []
    for path in _sources("ofa_jax", "configs", "launch"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
                swallowed = all(isinstance(item, ast.Pass) for item in node.body)
                if node.type is None or (broad and swallowed):
                    faults.append(f"{_name(path)}:{node.lineno}")
    assert faults == []


def _tracked() -> list[Path]:
    """Files that git tracks or would track; a tree without git (an unpacked archive) is read by suffix."""
    if (ROOT / ".git").exists():
        listing = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]
    return (
        _sources("ofa_jax", "configs", "launch", "tests")
        + sorted(path for path in ROOT.glob("*.*") if path.is_file())
        + [ROOT / "Makefile"]
    )


def test_no_path_of_one_machine_is_written_down():
    # Homes and mounted folders of one machine; /usr, /bin, /etc, /proc, /dev and /tmp exist everywhere.
    machine = re.compile(r"(?<![\w:/.~$}])/(?:home|root|work|Users|mnt|data|workspace)/[\w.-]+")
    faults = []
    for path in _tracked():
        if path.suffix in {".py", ".md", ".toml", ".sh", ".txt", ".cfg", ".yml", ""} and path.name != "LICENSE":
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if machine.search(line) and path != Path(__file__).resolve():
                    faults.append(f"{_name(path)}:{number}: {line.strip()[:80]}")
    assert faults == []


def test_tests_have_unique_names_and_skip_nothing_but_the_bpe_dictionary():
    faults = []
    for path in _sources("tests"):
        text = path.read_text()
        marks = re.findall(r"mark\.(?:skip|skipif|xfail)\b|pytest\.skip\(|pytest\.importorskip", text)
        if marks and "OFA_BPE_DIR" not in text and path != Path(__file__).resolve():
            faults.append(f"{_name(path)}: {marks}")
    assert faults == []
