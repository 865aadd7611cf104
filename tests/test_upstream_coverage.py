"""Each layer of ours is run over PyTorch's databases, and no skip is without a reason."""

from __future__ import annotations

import test_upstream_modules
import test_upstream_ops
import torch
import upstream
from test_upstream_differential import EVERY_DTYPE


def test_every_class_has_inputs() -> None:
    covered = {info.module_cls.__name__ for info in (*upstream.MODULES, *upstream.OWN_MODULES)}
    assert covered == set(upstream.CLASSES) - set(upstream.BY_THEIR_FUNCTIONS)
    by_op_db = {op.name.removeprefix("nn.functional.") for op in upstream.OPS}
    assert set(upstream.BY_THEIR_FUNCTIONS.values()) <= by_op_db
    for info in (*upstream.MODULES, *upstream.OWN_MODULES):
        inputs = info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=True, training=True)
        assert [i for i in inputs if i.forward_input is not None], info.name


def test_every_function_has_inputs() -> None:
    """From op_db, or as what the forward of a covered class calls, or a function of op_db that also returns indices."""
    by_op_db = {op.name.removeprefix("nn.functional.") for op in upstream.OPS}
    for op in upstream.OPS:
        assert list(op.sample_inputs("cpu", next(d for d in EVERY_DTYPE if d in op.supported_dtypes("cpu")))), (
            op.full_name
        )
    called = {name for cls in upstream.CLASSES.values() for name in cls.forward.__code__.co_names}
    with_indices = {f"{name}_with_indices" for name in by_op_db if "max_pool" in name}
    assert set(upstream.FUNCTIONS) - by_op_db <= called | with_indices | set(upstream.WITHOUT_ENTRY)


def test_no_skip_without_a_reason() -> None:
    tests = {
        (name.removesuffix("CPU"), test)
        for module in (test_upstream_modules, test_upstream_ops)
        for name, cls in vars(module).items()
        if name.startswith("Test") and name.endswith("CPU")
        for test in vars(cls)
        if test.startswith("test")
    }
    for entry in (*upstream.MODULES, *upstream.OPS):
        name = getattr(entry, "full_name", entry.name)
        for decoration in entry.decorators:
            if not upstream.is_skip(decoration) or decoration.device_type not in (None, "cpu"):
                continue
            if not decoration.active_if:  # on another system
                continue
            of_a_test_here = any(
                cls == decoration.cls_name and test.startswith(decoration.test_name or "test") for cls, test in tests
            )
            assert not of_a_test_here or (name, decoration.test_name) in upstream.REASONS or says_why(decoration), (
                name,
                decoration.test_name,
            )


def says_why(decoration: object) -> bool:
    (skip,) = decoration.decorators  # type: ignore[attr-defined]
    return "Skipped!" not in [cell.cell_contents for cell in skip.__closure__ or ()]
