"""MeLU (Lee et al., KDD 2019): a starting point that a few gradient steps on an item's own rows make a good model."""

from __future__ import annotations

import torch
from torch import nn

from mwuf_dist.config import Depth, MethodConfig, Positive, UserError, section
from mwuf_dist.methods.interface import Episodes, Method, PretrainedItems


@section
class MeluConfig(MethodConfig):
    """Keys of `melu`."""

    # Learning rate of the gradient steps from the first to the second half of an episode.
    inner_learning_rate: Positive = 0.1
    local_steps: Depth = 1  # Gradient steps on the first half.
    first_order: bool = False  # Leave out the second derivatives of these steps.


class MeLU(Method):
    """MeLU (Lee et al., KDD 2019), for items and a frozen model.

    MeLU is MAML with two kinds of parameters. Those of the decision layers are local: every task starts from the same
    values and moves them by gradient steps on its support rows. Those of the embeddings are global: no local step moves
    them. The loss of the query rows after the local steps trains the global ones and the start of the local ones.

    What is adapted, and why:

    * A task is an item (there it is a user), because items are what is new here.
    * The pretrained model is frozen for every method: the embeddings of the fields, MeLU's global parameters, are what
      `pretrain` has made of them.
    * The decision layers are frozen too, and a new item has one row of D numbers v to learn. That row is the local
      parameter. A frozen first layer W_v v + W_c c + b sees a local step on v as a step on this item's own bias b,
      within the D directions of W_v: of all that could be local in the decision layers, this is the part that does not
      depend on the user. Local weights of deeper layers would need a decision network per item at the server.
    * Every item starts from the same v, as every task of MeLU does. It starts training at the mean row of phi_old, the
      common initialisation. (A start made from the item's fields is MetaEmb's idea. Tried here, a linear map of
      them beside v, it was worse in the cold phase of old items played as new.)
    * The local steps on new items are stage `warm_up`: the optimizer and number of steps that every method has.

    The gradient goes through the `method.local_steps` local steps, second derivatives and all; with
    `method.first_order` the slopes in them are constants, as in first-order MAML. (The authors' published code copies
    the fast weights into the model as values, so that no second derivative reaches their update.) Second order needs a
    backbone that can be differentiated twice in the item embedding, as each of this package can.
    """

    Config = MeluConfig
    config: MeluConfig
    initialisation = "own"
    episode_trained = True

    def __init__(self, config: MeluConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        self.shared = nn.Parameter(torch.zeros(dim))
        self._is_checked = False

    def attach(self, items: PretrainedItems) -> None:
        """See `Method.attach`."""
        with torch.no_grad():
            self.shared.copy_(items.mean_old_row())

    def initial_rows(self, items: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """See `Method.initial_rows`."""
        return self.shared.expand(len(items), -1)

    def episode_loss(self, episodes: Episodes) -> torch.Tensor:
        """See `Method.episode_loss`.

        Raises:
            UserError: second order was asked for with a backbone whose gradient cannot be differentiated.
        """
        second_order = not self.config.first_order
        v = self.initial_rows(episodes.items, episodes.item_context)
        for _ in range(self.config.local_steps):
            # An item's support loss depends on its own row of v only: the sum's gradient holds each item's own.
            (slope,) = torch.autograd.grad(episodes.support_loss(v).sum(), v, create_graph=second_order)
            if second_order and not self._is_checked:
                _check(slope, v)
                self._is_checked = True
            v = v - self.config.inner_learning_rate * slope
        return episodes.query_loss(v)


def _check(slope: torch.Tensor, v: torch.Tensor) -> None:
    """Refuses a slope [E, D] that cannot be differentiated in v [E, D] again."""
    try:
        torch.autograd.grad(slope.sum(), v, retain_graph=True)
    except RuntimeError as error:
        raise UserError(
            "method 'melu': the gradient of this backbone in the item embedding cannot be differentiated again "
            f"({error}): write it in differentiable operations, or take method.first_order = true"
        ) from None
