"""The house's floors and a few habits, read from the source with ast."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dinov2", "eval", "data_prep", "slurm")
# A file imports only from its own floor or below. Single files of dinov2 (sensors, config, ...) are floor 0; what
# stands in no package (train.py, hubconf.py, benchmarks, tests) is above all floors.
FLOORS = {"dinov2.data": 1, "dinov2.models": 1, "dinov2.objectives": 2, "dinov2.train": 3}
FLOORS |= {"eval": 4, "data_prep": 4, "slurm": 5}
ROOF = 6
BANNED = {"torchvision", "timm", "torchgeo", "mmcv", "mmseg", "tifffile"}
# What may name torch.distributed, and why
DISTRIBUTED = {
    "dinov2.distributed": "its owner",
    "dinov2.train.parallel": "shards an objective (FSDP2)",
    "dinov2.train.checkpoint": "writes and reads what is sharded (torch.distributed.checkpoint)",
    "tests.ranks": "starts the process groups that tests compare with one process",
}


def floor(module: str) -> int:
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return ROOF
    return FLOORS.get(".".join(parts[:2]), FLOORS.get(parts[0], 0))


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names of everything imported; ``from a import b`` gives ``a`` and, in case b is a module, ``a.b``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: not the bodies of functions, not what only mypy reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield node
        yield from at_import(node)


def problems(module: str, tree: ast.AST) -> Iterator[str]:
    """Everything that breaks a rule in one file, as ``what``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "relative import"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = list(imports(iter([node])))
            yield from (f"imports {n} from a higher floor" for n in names if floor(module) < floor(n) < ROOF)
            yield from (f"imports {n}" for n in names if n in BANNED)
            if isinstance(node, ast.Import) and any(n.split(".")[0] == "eval" for n in names):
                yield "binds the name eval, which is Python's own; from eval.x import y"
            if any(n.startswith("torch.distributed") for n in names) and module not in DISTRIBUTED:
                yield "imports torch.distributed; use dinov2.distributed"
        elif isinstance(node, ast.Call):
            called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called.endswith(".cuda") or called == "cuda":
                yield f"{called}(): the device is decided in one place"
            if keywords.get("strict") == "False" and called not in ("zip", "map"):
                yield f"{called}(strict=False)"
            if called in ("pickle.load", "pickle.loads") and not module.startswith("tests."):
                yield f"{called}: a pickle can run code; read it with a restricted Unpickler"
            if called == "torch.load" and keywords.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed" and module not in DISTRIBUTED:
            yield "torch.distributed; use dinov2.distributed"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield "bare except"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files() -> dict[str, ast.AST]:
    """Module name -> parsed source, for the whole project."""
    folders = [ROOT / name for name in (*PACKAGES, "benchmarks", "docs", "tests")]
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return {module_of(path): ast.parse(path.read_text(), str(path)) for path in sorted(paths)}


@pytest.fixture(scope="module")
def sources() -> dict[str, ast.AST]:
    return source_files()


def test_every_file_keeps_the_rules(sources: dict[str, ast.AST]) -> None:
    found = [f"{m}: {p}" for m, tree in sources.items() for p in problems(m, tree)]
    assert found == []


def test_exceptions_still_exist(sources: dict[str, ast.AST]) -> None:
    assert DISTRIBUTED.keys() <= sources.keys()


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("dinov2.data.x", "from dinov2.objectives.base import Objective", "higher floor"),
        ("dinov2.sensors", "def f():\n    import dinov2.data", "higher floor"),
        ("dinov2.train.x", "from eval.knn import knn", "higher floor"),
        ("eval.x", "from slurm.submit import submit", "higher floor"),
        ("train", "import eval", "Python's own"),
        ("train", "import eval.knn", "Python's own"),
        ("eval.x", "from torchvision import transforms", "imports torchvision"),
        ("eval.x", "from .y import z", "relative"),
        ("eval.x", "import torch.distributed as dist", "torch.distributed"),
        ("eval.x", "from torch import distributed", "torch.distributed"),
        ("eval.x", "import torch\ntorch.distributed.barrier()", "torch.distributed"),
        ("eval.x", "model.cuda()", "cuda"),
        ("eval.x", "model.load_state_dict(state, strict=False)", "strict=False"),
        ("eval.x", "pickle.load(file)", "restricted"),
        ("eval.x", "torch.load(path)", "weights_only"),
        ("eval.x", "torch.load(path, weights_only=False)", "weights_only"),
        ("eval.x", "try:\n    f()\nexcept:\n    pass", "bare except"),
    ],
)
def test_each_rule_can_be_broken(module: str, source: str, problem: str) -> None:
    assert any(problem in found for found in problems(module, ast.parse(source)))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dinov2.objectives.x", "from dinov2.models.vit import ViT\nfrom dinov2 import distributed"),
        ("train", "from eval.knn import knn\nfrom dinov2.train.loop import train"),
        ("data_prep.x", "from eval.tiling import windows"),  # the same floor
        ("eval.x", "torch.load(path, weights_only=True)\ntorch.cuda.is_available()\nzip(a, b, strict=False)"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert list(problems(module, ast.parse(source))) == []


def test_hubconf_needs_torch_and_numpy_only(sources: dict[str, ast.AST]) -> None:
    seen, waiting, foreign = set(), ["hubconf"], {}
    while waiting:
        module = waiting.pop()
        seen.add(module)
        for name in imports(at_import(sources[module])):
            if name.split(".")[0] in PACKAGES:
                parts = name.split(".")
                parents = (".".join(parts[: i + 1]) for i in range(len(parts)))  # a parent's __init__ runs first
                waiting += [p for p in parents if p in sources and p not in seen]
            elif name.split(".")[0] not in sys.stdlib_module_names:
                foreign[name.split(".")[0]] = module
    assert foreign.keys() <= {"torch", "numpy"}, foreign
