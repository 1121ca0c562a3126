"""What the kernel tests share: devices, a float64 comparison, and a check for equal bits.

The same test bodies run on the CPU path, under the Triton interpreter (``test_interpreter.py`` starts them again with
``TRITON_INTERPRET=1``) and on a GPU (marker ``gpu``).
"""

from collections.abc import Callable

import pytest
import torch

# max|error| / max|reference|, of outputs and of gradients
TOLERANCES = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (1.6e-2, 1.6e-2)}


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


def _relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    assert value.shape == reference.shape
    if reference.numel() == 0:
        return 0.0
    largest = reference.abs().max().item()
    return (value.double() - reference).abs().max().item() / (largest or 1.0)


@pytest.fixture
def assert_matches() -> Callable:
    """Asserts that an op and its gradients match the float64 reference within the type's tolerances."""

    def check(op: Callable, reference: Callable, inputs: list) -> None:
        dtype = next(value.dtype for value in inputs if isinstance(value, torch.Tensor) and value.is_floating_point())
        for_outputs, for_gradients = TOLERANCES[dtype]
        outputs, gradients = _run(op, _require_gradients(inputs))
        wanted_outputs, wanted_gradients = _run(reference, _require_gradients(inputs, torch.float64))
        assert all(value.dtype == dtype for value in (*outputs, *gradients))
        for k, pair in enumerate(zip(outputs, wanted_outputs, strict=True)):
            assert _relative_error(*pair) <= for_outputs, f"output {k}"
        for k, pair in enumerate(zip(gradients, wanted_gradients, strict=True)):
            assert _relative_error(*pair) <= for_gradients, f"gradient {k}"

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
