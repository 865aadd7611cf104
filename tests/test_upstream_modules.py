"""Upstream's ``TestModule`` over our classes: module_db's inputs, references, tolerances, skips and expected failures.

The bodies are ours (upstream's test files do not ship); the names are upstream's, since its decorations hang on them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import upstream
from torch.testing._internal.common_device_type import instantiate_device_type_tests, tol, toleranceOverride
from torch.testing._internal.common_modules import ModuleErrorEnum, modules
from torch.testing._internal.common_utils import (
    TestCase,
    freeze_rng_state,
    gradcheck,
    gradgradcheck,
    noncontiguous_like,
)
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from torch_manualbp import restore

pytestmark = pytest.mark.filterwarnings(
    "ignore:reduction. 'mean' divides",  # torch's, of KLDivLoss's own default
    "ignore:linear_cross_entropy. ``options`` ignored",  # torch's, of upstream's options
    "ignore:Possible nested set",  # of upstream's own patterns
)

EVERY = (*upstream.MODULES, *upstream.OWN_MODULES)
NORMS = {f"{kind}Norm{d}d" for kind in ("Batch", "Instance") for d in (1, 2, 3)}
WITH_PARAMETERS = {"Linear", "Bilinear", "GroupNorm", "LayerNorm", "PReLU", "RMSNorm", *NORMS}
WITH_PARAMETERS |= {"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"}
"""Classes whose constructor takes ``device`` and ``dtype``, for their parameters."""


def _asks_for_training(layer: torch.nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether it asks for what it has no longer: torch's transformers do not for all inputs."""
    try:
        layer(*args, **kwargs)
    except AttributeError as error:
        return "training" in str(error)
    return False


def _mode(module_info: Any) -> dict[str, Any]:
    """Of gradcheck, as the entry has it; torch 2.6 has none."""
    return {"fast_mode": getattr(module_info, "gradcheck_fast_mode", False)}


class TestModule(TestCase):
    def _layers(
        self, info: Any, device: str, dtype: torch.dtype, training: bool, requires_grad: bool = False, **changed: Any
    ) -> Iterator[tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any], Any]]:
        """A layer of ours for each of the entry's inputs, and what it is called with."""
        inputs = info.module_inputs_func(
            info, device=device, dtype=dtype, requires_grad=requires_grad, training=training
        )
        for module_input in inputs:
            if module_input.forward_input is None:
                continue
            constructor, forward = module_input.constructor_input, module_input.forward_input
            with freeze_rng_state():
                layer = info.module_cls(*constructor.args, **{**constructor.kwargs, **changed})
                layer.to(device).to(dtype).train(training)
            yield layer, tuple(forward.args), forward.kwargs, module_input
            upstream.RAN["inputs of layers in upstream's tests"] += 1

    @modules(EVERY)
    def test_forward(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for layer, args, kwargs, module_input in self._layers(module_info, device, dtype, training):
            with freeze_rng_state():
                outputs = layer(*args, **kwargs)
            if module_input.reference_fn is not None:
                self.assertEqual(outputs, module_input.reference_fn(layer, *args, **kwargs))

    @modules([i for i in EVERY if i.module_cls.__name__ in WITH_PARAMETERS])
    def test_factory_kwargs(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        inputs = module_info.module_inputs_func(
            module_info, device=device, dtype=dtype, requires_grad=False, training=training
        )
        for module_input in inputs:
            constructor = module_input.constructor_input
            layer = module_info.module_cls(*constructor.args, **constructor.kwargs, device="meta", dtype=dtype)
            for parameter in layer.parameters():
                self.assertEqual((parameter.device.type, parameter.dtype), ("meta", dtype))

    @modules(EVERY)
    def test_repr(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        theirs = upstream.torch_class(module_info)
        for layer, _, _, module_input in self._layers(module_info, device, dtype, training):
            constructor = module_input.constructor_input
            twin = theirs(*constructor.args, **constructor.kwargs).train(training)
            self.assertEqual(repr(layer), repr(twin))
            self.assertEqual(str(layer), str(twin))

    @modules(EVERY)
    def test_pickle(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for layer, args, kwargs, _ in self._layers(module_info, device, dtype, training):
            with freeze_rng_state():
                output = layer(*args, **kwargs)
            again = pickle.loads(pickle.dumps(layer))
            self.assertIs(type(again), type(layer))
            with freeze_rng_state():
                self.assertEqual(again(*args, **kwargs), output)

    # A dropout that drops nothing changes nothing: the differential tests compare it with torch's.
    @modules(
        [
            i
            for i in EVERY
            if "inplace" in upstream.torch_class(i).__init__.__code__.co_varnames and "Drop" not in i.name
        ]
    )
    def test_check_inplace(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        outs = self._layers(module_info, device, dtype, training, requires_grad=True)
        ins = self._layers(module_info, device, dtype, training, requires_grad=True, inplace=True)
        for (layer, args, kwargs, _), (in_place, _, _, _) in zip(outs, ins, strict=True):
            with freeze_rng_state():
                output = layer(*args, **kwargs)
            copies = [a.clone() for a in args]
            version = copies[0]._version
            with freeze_rng_state():
                changed = in_place(*copies, **kwargs)
            self.assertGreater(copies[0]._version, version)
            self.assertIs(changed, copies[0])
            self.assertEqual(changed, output)
            upstream_gradient = torch.randn_like(output)
            expected = torch.autograd.grad(output, args[0], upstream_gradient)
            self.assertEqual(torch.autograd.grad(changed, args[0], upstream_gradient), expected)
            with self.assertRaisesRegex(RuntimeError, "a leaf Variable that requires grad"):
                in_place(*args, **kwargs)

    @modules(EVERY)
    def test_non_contiguous_tensors(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for layer, args, kwargs, _ in self._layers(module_info, device, dtype, training, requires_grad=True):
            strided_twins: dict[int, torch.Tensor] = {}  # KLDivLoss's scalars are one tensor in two places

            def spread(t: Any, twins: dict[int, torch.Tensor] = strided_twins) -> Any:
                return twins.setdefault(id(t), noncontiguous_like(t)) if isinstance(t, torch.Tensor) else t

            results = []
            for given, named in ((args, kwargs), tree_map(spread, (args, kwargs))):
                layer.zero_grad()
                with freeze_rng_state():
                    torch.manual_seed(4)
                    output = layer(*given, **named)
                inputs = [t for t in (*given, *named.values()) if isinstance(t, torch.Tensor) and t.requires_grad]
                torch.manual_seed(5)
                wrt = [*inputs, *layer.parameters()]
                for strided in (False, True):
                    outputs = upstream.continuous(output)
                    pulls = [torch.randn(o.shape, dtype=o.dtype) for o in outputs]
                    pulls = [noncontiguous_like(pull) if strided else pull for pull in pulls]
                    results.append(torch.autograd.grad(outputs, wrt, pulls, retain_graph=True, allow_unused=True))
                results.append(output)
            half = len(results) // 2
            self.assertEqual(results[:half], results[half:])

    def _check_derivatives(
        self, check: Any, info: Any, device: str, dtype: torch.dtype, training: bool, **options: Any
    ) -> None:
        for layer, args, kwargs, _ in self._layers(info, device, dtype, training, requires_grad=True):
            with freeze_rng_state():
                layer(*args, **kwargs)  # a lazy layer learns its shape
            flat, spec = tree_flatten((args, kwargs, dict(layer.named_parameters())))
            learning = [i for i, t in enumerate(flat) if isinstance(t, torch.Tensor) and t.requires_grad]

            def run(
                *tensors: torch.Tensor, layer: Any = layer, flat: Any = flat, spec: Any = spec, learning: Any = learning
            ) -> Any:
                moved = list(flat)
                for i, t in zip(learning, tensors, strict=True):
                    moved[i] = t
                args, kwargs, parameters = tree_unflatten(moved, spec)
                with freeze_rng_state():
                    output = torch.func.functional_call(layer, parameters, args, kwargs)
                return output if isinstance(output, torch.Tensor) else tuple(tree_leaves(output))

            inputs = tuple(flat[i] for i in learning)
            self.assertTrue(check(run, inputs, nondet_tol=info.gradcheck_nondet_tol, **options))

    @modules(EVERY, allowed_dtypes=[torch.double])
    def test_grad(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        options = {"check_forward_ad": True, **_mode(module_info)}
        self._check_derivatives(gradcheck, module_info, device, dtype, training, **options)

    @modules(EVERY, allowed_dtypes=[torch.double])
    def test_gradgrad(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        self._check_derivatives(gradgradcheck, module_info, device, dtype, training, **_mode(module_info))

    # CPU kernels of the two layouts sum in other orders.
    @toleranceOverride({torch.float32: tol(atol=1e-5, rtol=1e-5)})
    @modules(EVERY)
    def test_memory_format(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for layer, args, kwargs, _ in self._layers(module_info, device, dtype, training, requires_grad=True):
            if not args or not isinstance(args[0], torch.Tensor) or args[0].dim() not in (4, 5):
                continue
            memory_format = torch.channels_last if args[0].dim() == 4 else torch.channels_last_3d
            laid_out = [a.detach().to(memory_format=memory_format).requires_grad_() for a in args]
            with freeze_rng_state():
                output, *_ = upstream.continuous(layer(*args, **kwargs))
            with freeze_rng_state():
                again, *_ = upstream.continuous(layer(*laid_out, **kwargs))
            self.assertEqual(again, output)
            theirs = upstream.torch_class(module_info)
            twin, *_ = upstream.continuous(theirs.forward(layer, *laid_out, **kwargs))
            self.assertEqual(again.stride(), twin.stride())
            pull = torch.randn_like(output)
            self.assertEqual(torch.autograd.grad(again, laid_out, pull), torch.autograd.grad(output, args, pull))

    @modules(EVERY, allowed_dtypes=[torch.float32, torch.float64])
    def test_if_train_and_eval_modes_differ(
        self, device: str, dtype: torch.dtype, module_info: Any, training: bool
    ) -> None:
        differ = False
        for layer, args, kwargs, _ in self._layers(module_info, device, dtype, training):
            results = []
            for mode in (True, False):
                layer.train(mode)
                with freeze_rng_state():
                    results.append(tree_leaves(layer(*args, **kwargs)))
            differ |= any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*results, strict=True))
        self.assertLessEqual(differ, module_info.train_and_eval_differ)
        if module_info.train_and_eval_differ:  # of recurrent layers none of the inputs has a dropout
            del layer.training
            asks = _asks_for_training(layer, args, kwargs)
            restore(layer)
            self.assertEqual(asks, _asks_for_training(layer, args, kwargs))

    @modules([i for i in EVERY if i.module_cls.__name__ in WITH_PARAMETERS])
    def test_device_ctx_init(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        with torch.device("meta"):
            inputs = module_info.module_inputs_func(
                module_info, device=None, dtype=dtype, requires_grad=False, training=training
            )
            for module_input in inputs:
                constructor = module_input.constructor_input
                layer = module_info.module_cls(*constructor.args, **constructor.kwargs)
                self.assertTrue(all(p.is_meta for p in layer.parameters()))
                output = layer.to(dtype)(*module_input.forward_input.args, **module_input.forward_input.kwargs)
                self.assertTrue(all(o.is_meta for o in tree_leaves(output)))

    @modules([i for i in EVERY if i.module_error_inputs_func is not None])
    def test_errors(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        errors = module_info.module_error_inputs_func(
            module_info, device=device, dtype=dtype, requires_grad=False, training=training
        )
        for error in errors:
            constructor = error.module_error_input.constructor_input
            if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
                with self.assertRaisesRegex(error.error_type, error.error_regex):
                    module_info.module_cls(*constructor.args, **constructor.kwargs)
                continue
            forward, said = error.module_error_input.forward_input, []
            for cls in (upstream.torch_class(module_info), module_info.module_cls):
                layer = cls(*constructor.args, **constructor.kwargs)
                with self.assertRaises(error.error_type) as raised:
                    layer(*forward.args, **forward.kwargs)  # in training, as upstream's own test does it
                said.append(str(raised.exception))
            self.assertEqual(*said)

    @modules(EVERY, allowed_dtypes=[torch.float32])
    def test_to(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for layer, args, kwargs, _ in self._layers(module_info, device, dtype, training):
            with freeze_rng_state():
                layer(*args, **kwargs)  # a lazy layer learns its shape
            before = {name: p.data_ptr() for name, p in layer.named_parameters()}
            self.assertIs(layer.to(torch.float64), layer)
            self.assertTrue(all(p.dtype == torch.float64 for p in layer.parameters()))
            self.assertEqual(set(before), {name for name, _ in layer.named_parameters()})
            self.assertTrue(all(p.is_meta for p in layer.to("meta").parameters()))

    @modules(EVERY, allowed_dtypes=[torch.float32])
    def test_to_empty(self, device: str, dtype: torch.dtype, module_info: Any, training: bool) -> None:
        for layer, args, kwargs, _ in self._layers(module_info, device, dtype, training):
            with freeze_rng_state():
                layer(*args, **kwargs)
            layer.to("meta").to_empty(device=device)
            self.assertTrue(all(p.device.type == device for p in layer.parameters()))
            self.assertTrue(all(o.dtype == dtype for o in upstream.continuous(layer(*args, **kwargs))))


instantiate_device_type_tests(TestModule, globals(), only_for="cpu")
upstream.one_of_each_kind(globals()["TestModuleCPU"])
