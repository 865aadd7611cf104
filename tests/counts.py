"""Counts of what the package promises to have once, or not at all, with the places: ``python tests/counts.py``."""

from __future__ import annotations

import ast
import functools
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import test_imports

ROOT = test_imports.ROOT

BASES = {"rule.py", "elementwise.py", "recording.py"}
"""The files of rules/ that may ask where they run."""

QUESTIONS = re.compile(
    r"(is_(compiling|transformed|jit_tracing|traced_by_make_fx|grad_enabled|inference_mode_enabled|autocast_enabled)"
    r"|forward_mode_level|functorch_levels_of_forward_mode|dispatch_modes|recorder|get_num_threads"
    r"|has_torch_function|backward_task|formulas_are_compiled|is_watched|is_mapped|is_batched)$"
)
"""Functions that say who watches."""

PLACES = re.compile(r"\.device\.type|\.is_cuda|\.is_cpu|\.is_meta|\.requires_grad|isinstance\(.*(Parameter|FakeTensor)")
"""Properties that do."""

SCRIPTS = {"derive/kernel_maker.py"}
"""Files that are run by themselves and import torch alone."""


@functools.cache
def trees() -> list[tuple[str, ast.Module]]:
    """The package's files by their paths, parsed."""
    return [
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted(ROOT.rglob("*.py"))
    ]


def dotted(node: ast.AST) -> str:
    """``torch._C`` of such an attribute; of another expression nothing."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def questions() -> list[str]:
    """Calls of rules outside of the base classes that ask about their surroundings."""
    found = []
    for name, tree in trees():
        if not name.startswith("rules/") or name.removeprefix("rules/") in BASES:
            continue
        for node in ast.walk(tree):
            is_call = isinstance(node, ast.Call) and QUESTIONS.search(dotted(node.func))
            if is_call or (isinstance(node, ast.Attribute) and PLACES.search(ast.unparse(node))):
                found.append(f"{name}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)}")
    return found


def spellings() -> list[str]:
    """Entrywise rules that write both f' and its product with ∂C/∂a; the base class makes one of the other."""
    return [
        f"{name}:{node.lineno}: {node.name}"
        for name, tree in trees()
        if name.startswith("rules/") and name.removeprefix("rules/") not in BASES
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and {"derivative", "delta"} <= {f.name for f in node.body if isinstance(f, ast.FunctionDef)}
    ]


def private_names() -> list[str]:
    """Names of torch that begin with an underscore, outside of _torch.py and of what is run by itself."""
    found = []
    for name, tree in trees():
        if name == "_torch.py" or name in SCRIPTS:
            continue
        for node in ast.walk(tree):
            names = [dotted(node)] if isinstance(node, ast.Attribute) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            private = [each for each in names if re.match(r"torch(\.\w+)*\._[a-zA-Z]\w*(\.|$)", each)]
            found += [f"{name}:{getattr(node, 'lineno', 0)}: {each}" for each in private]
    return sorted(set(found))


def recording_contexts() -> list[str]:
    """ContextVars that say who records."""
    return [
        f"{name}:{node.lineno}: {ast.unparse(node)}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and dotted(node.func).endswith("ContextVar")
    ]


def tests_for_one_rule() -> list[str]:
    """Comparisons with a rule's class outside of rules/, as ``rule is Linear``."""
    families = [tree for name, tree in trees() if name.startswith("rules/")]
    rules = {node.name for tree in families for node in tree.body if isinstance(node, ast.ClassDef)}
    found = []
    for name, tree in trees():
        if name.startswith(("rules/", "catalogue/", "verify/mistakes/")):
            continue
        own = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch_manualbp.rules")
            for alias in node.names
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Compare) or not isinstance(node.ops[0], ast.Is | ast.IsNot | ast.Eq | ast.In):
                continue
            names = [dotted(n) for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)]
            sides = [each.split(".")[-1] for each in names if each in own or "rules." in each]
            if rules.intersection(sides):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    return found


def entrywise_lists() -> list[str]:
    """Lists of rules, or of torch's functions, that act entry by entry."""
    return [
        f"{name}:{node.lineno}: {target.id}"
        for name, tree in trees()
        for node in tree.body
        for target in (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if isinstance(target, ast.Name) and re.search(r"POINTWISE|ELEMENTWISE|ENTRYWISE", target.id)
        if not name.startswith("catalogue/")  # whose rows of a family are one
    ]


def definitions(name_of_one: str) -> list[str]:
    """Classes or functions of this name."""
    return [
        f"{name}:{node.lineno}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name_of_one
    ]


def circles() -> list[str]:
    """Files that import each other."""
    try:
        TopologicalSorter(test_imports.imports()).prepare()
    except CycleError as error:
        return [" → ".join(error.args[1])]
    return []


def lines(pattern: str, root: Path = ROOT) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in root.glob(pattern))


COUNTS = {
    "calls in rules/ that ask about surroundings, outside of the base classes": (questions, 0),
    "entrywise rules with two spellings": (spellings, 0),
    "private names of torch outside of _torch.py": (private_names, 0),
    "recording contexts": (recording_contexts, 1),
    "tests for the class Linear": (lambda: [place for place in tests_for_one_rule() if "Linear" in place], 0),
    "lists of entrywise rules or functions": (entrywise_lists, 2),  # what a plan and what a kernel of a step knows
    "definitions of Check": (lambda: definitions("Check"), 1),
    "definitions of DoesNotApply": (lambda: definitions("DoesNotApply"), 1),
    "definitions of ulp": (lambda: definitions("ulp"), 1),
    "circles of imports": (circles, 0),
}
"""What is counted, and how many there may be."""


if __name__ == "__main__":
    for what, (places, most) in COUNTS.items():
        found = places()
        print(f"{len(found):6d}  {what}" + (f" (at most {most})" if len(found) > most else ""))
        for place in found:
            print(f"          {place}")
    for what, number in {
        "tests for one rule's class": len(tests_for_one_rule()),
        "lines of rules/": lines("rules/**/*.py"),
        "lines of the package": lines("**/*.py"),
        "lines of tests/": lines("*.py", Path(__file__).parent),
    }.items():
        print(f"{number:6d}  {what}")
