"""What the kernel tests share: devices, a float64 comparison, and a check for equal bits.

The same test bodies run on the CPU path, under the Triton interpreter (``test_interpreter.py`` starts them again with
``TRITON_INTERPRET=1``) and on a GPU (marker ``gpu``).
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from mwuf_kernels import set_num_threads

from tests.bounds import assert_float32_close

# What is kept between two steps (rows, hidden units, scale and shift, outputs) is rounded to 8 bits each time.
BFLOAT16_BOUND = 4 * 2**-8


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device: the kernels' GPU path is not tested here")
    return request.param


def _require_gradients(inputs: list, dtype: torch.dtype | None = None) -> list:
    """Copies of the inputs; floating ones require gradients."""
    copies = []
    for value in inputs:
        if isinstance(value, torch.Tensor):
            value = value.detach().clone()
            if value.is_floating_point():
                value = value.to(dtype or value.dtype).requires_grad_()
        copies.append(value)
    return copies


def _run(op: Callable, inputs: list, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs of ``op`` and gradients of its floating inputs for random output gradients."""
    outputs = op(*inputs)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out.shape, generator=generator).to(torch.bfloat16).to(out) for out in outputs]
    leaves = [value for value in inputs if isinstance(value, torch.Tensor) and value.requires_grad]
    return outputs, list(torch.autograd.grad(outputs, leaves, weights))


def _assert_close(values: list[torch.Tensor], references: list[torch.Tensor], inputs: list) -> None:
    # Nothing is summed over more than the widths of all inputs, or the rows of the longest, there and back.
    shapes = [value.shape for value in inputs if isinstance(value, torch.Tensor)]
    longest = max([1, *(shape[0] for shape in shapes if shape)]) + sum(shape[-1] for shape in shapes if len(shape) > 1)
    for k, (value, reference) in enumerate(zip(values, references, strict=True)):
        assert value.shape == reference.shape, k
        if value.dtype == torch.bfloat16 and value.numel():
            assert (value.double() - reference).abs().max() <= BFLOAT16_BOUND * (reference.abs().max() or 1), k
        else:
            assert_float32_close(value, reference, num_terms=longest)


@pytest.fixture
def assert_matches() -> Callable:
    """Asserts that an op and its gradients match the float64 reference within the type's rounding."""

    def check(op: Callable, reference: Callable, inputs: list) -> None:
        dtype = next(value.dtype for value in inputs if isinstance(value, torch.Tensor) and value.is_floating_point())
        outputs, gradients = _run(op, _require_gradients(inputs))
        wanted_outputs, wanted_gradients = _run(reference, _require_gradients(inputs, torch.float64))
        assert all(value.dtype == dtype for value in (*outputs, *gradients))
        _assert_close(outputs, wanted_outputs, inputs)
        _assert_close(gradients, wanted_gradients, inputs)

    return check


@pytest.fixture
def assert_same_bits() -> Callable:
    """Asserts that three runs of an op and its backward give the same bits."""

    def check(op: Callable, inputs: list) -> None:
        runs = [_run(op, _require_gradients(inputs)) for _ in range(3)]
        first = [*runs[0][0], *runs[0][1]]
        for outputs, gradients in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(first, [*outputs, *gradients], strict=True))

    return check


@pytest.fixture
def assert_same_bits_on_threads(assert_same_bits: Callable) -> Iterator[Callable]:
    """Asserts that an op and its backward give the same bits on 1, 2 and 8 threads."""

    def check(op: Callable, inputs: list) -> None:
        number = iter((1, 2, 8))

        def call(*given: object) -> object:
            set_num_threads(next(number))
            return op(*given)

        assert_same_bits(call, inputs)

    yield check
    set_num_threads(1)
