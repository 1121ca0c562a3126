"""Ranks agree on how they compute before the first step."""

import pytest
import torch

from mwuf_dist.runtime import Runtime
from mwuf_dist.runtime.runtime import _agreed


@pytest.mark.parametrize(("ours", "one_lacks", "agreed"), [(True, 0, True), (True, 1, False), (False, 1, False)])
def test_no_rank_uses_loops_that_another_lacks(
    ours: bool, one_lacks: int, agreed: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """With them ranks ask for distinct rows, without them TorchRec exchanges them: a run had waited for its timeout."""
    monkeypatch.setattr(Runtime, "max", lambda self, value: max(value, one_lacks))
    assert _agreed(Runtime(0, 2, torch.device("cpu"), False), ours) == agreed
    assert (len(recwarn) == 1) == (ours and not agreed)
