"""The prior from content: what made-up items were drawn from is found again, and intervals hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch

from mwuf_dist.config import UserError
from mwuf_dist.config.registry import method_config
from mwuf_dist.methods.content_prior import fit_content_prior
from mwuf_dist.methods.lines import Lines
from mwuf_dist.methods.map import Map

DIM = 3


def clicks(rows: torch.Tensor, num: int, generator: torch.Generator) -> tuple[Lines, torch.Tensor]:
    """So many clicks of each item [m, D], as lines, and their labels."""
    item = torch.arange(len(rows)).repeat_interleave(num)
    offset = 0.5 * torch.randn(len(item), generator=generator).double()
    slope = torch.randn(len(item), rows.shape[1], generator=generator).double()
    probability = torch.sigmoid(offset + (rows[item] * slope).sum(1))
    label = (torch.rand(len(item), generator=generator).double() < probability).double()
    return Lines(item, offset, slope), label


def test_mean_and_covariance_that_rows_were_drawn_from_are_found_again() -> None:
    """Within four standard errors of an estimate from rows that are known exactly, and a tenth for Laplace's bias."""
    generator, num = torch.Generator().manual_seed(0), 1_500
    weight = torch.tensor([[0.8, -0.5, 0.0], [0.0, 0.4, 0.3], [-0.3, 0.0, 0.6]]).double()
    factor = torch.tensor([[0.7, 0.0, 0.0], [0.3, 0.5, 0.0], [0.0, -0.2, 0.4]]).double()
    features = torch.randn(num, 3, generator=generator).double()
    rows = features @ weight + torch.randn(num, DIM, generator=generator).double() @ factor.T
    found = fit_content_prior(features, *clicks(rows, 60, generator), precision=1.5)
    covariance = factor @ factor.T
    error = 4 * covariance.diagonal().max().sqrt() / num**0.5
    assert (found.weight - weight).abs().max() < error + 0.1 * weight.abs().max()
    spread = 4 * covariance.diagonal().max() * (2 / num) ** 0.5
    assert (found.covariance - covariance).abs().max() < spread + 0.1 * covariance.diagonal().max()


def test_one_number_is_the_maximum_of_the_marginal_likelihood_by_quadrature() -> None:
    generator, num = torch.Generator().manual_seed(1), 150
    features = torch.randn(num, 1, generator=generator).double()
    rows = 0.7 * features + 0.8 * torch.randn(num, 1, generator=generator).double()
    lines, labels = clicks(rows, 40, generator)
    found = fit_content_prior(features, lines, labels, precision=1.0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    offset, slope, label = (values.numpy().reshape(num, -1) for values in (lines.offset, lines.slope, labels))

    def loss(values: np.ndarray) -> float:
        v = values[0] * features.numpy() + np.exp(values[1]) * nodes  # [num, nodes]
        logit = offset[:, None] + v[:, :, None] * slope.reshape(num, 1, -1)
        likelihood = (label[:, None] * logit - np.logaddexp(0, logit)).sum(2)
        return float(-scipy.special.logsumexp(likelihood, b=weights, axis=1).sum())

    b, log_s = scipy.optimize.minimize(loss, np.array([0.0, 0.0])).x
    assert float(found.weight) == pytest.approx(b, rel=0.1)  # a mode is nearer to the prior than the mean
    assert float(found.covariance) ** 0.5 == pytest.approx(np.exp(log_s), rel=0.1)


def test_content_that_says_nothing_is_given_no_weight() -> None:
    generator, num = torch.Generator().manual_seed(2), 400
    features = torch.randn(num, 40, generator=generator).double()
    rows = torch.randn(num, DIM, generator=generator).double()
    found = fit_content_prior(features, *clicks(rows, 40, generator), precision=1.0)
    told = (features @ found.weight).square().mean() / rows.square().mean()
    assert told < 0.03, "a regression without a prior on 40 numbers takes a tenth of the variance of 400 rows"


def content_map(strength: float = 1.0) -> Map:
    return Map(method_config(name="map", prior="content", prior_strength=strength), DIM, 2)


def test_first_rows_are_the_priors_mean_in_the_units_of_the_fields_and_a_constant_field_is_let_be() -> None:
    generator, num = torch.Generator().manual_seed(3), 400
    context = torch.stack([5 + 3 * torch.randn(num, generator=generator), torch.full((num,), 7.1)], dim=1).double()
    mean = 0.2 + 0.5 * (context[:, :1] - 5)
    rows = mean + 0.3 * torch.randn(num, DIM, generator=generator).double()
    method = content_map(strength=0.5).double()
    method.fit_prior(context, *clicks(rows, 60, generator))
    first = method.initial_rows(torch.arange(num), context)
    assert (first - mean).abs().mean() < 0.1
    deviation = torch.linalg.inv(method.precision).diagonal().sqrt() * 0.5**0.5  # the strength made it wider
    assert torch.allclose(deviation, torch.full((DIM,), 0.3).double(), rtol=0.15)
    assert method.fits_prior and method.initialisation == "own"
    with pytest.raises(UserError, match="'map' is an initialisation itself"):
        Map(method_config(name="map", prior="content", initialisation="mean"), DIM, 2)


def test_95_percent_intervals_hold_93_to_97_percent_where_the_truth_is_known() -> None:
    """Of 3,000 items with 3 to 40 clicks, drawn from the prior: each number of a row, and each of 5 logits."""
    generator, num = torch.Generator().manual_seed(4), 3_000
    method = Map(method_config(name="map", prior_precision=1.5), DIM, 2)
    rows = torch.randn(num, DIM, generator=generator).double() / 1.5**0.5
    lines, label = clicks(rows, 40, generator)
    kept = (torch.arange(40) < torch.randint(3, 41, (num, 1), generator=generator)).flatten()
    lines = lines.taken(kept)
    fitted = method.fit(torch.zeros_like(rows), lines, label[kept])
    covariance = method.covariance(fitted, lines)
    directions = torch.cat([torch.eye(DIM), torch.randn(5, DIM, generator=generator)]).double()
    away = (rows - fitted) @ directions.T
    deviation = torch.einsum("kd,mde,ke->mk", directions, covariance, directions).sqrt()
    held = (away.abs() < 1.96 * deviation).double().mean(0)
    assert held.min() > 0.93 and held.max() < 0.97, held


def test_the_covariance_of_an_item_without_clicks_is_the_priors_and_each_click_makes_it_smaller() -> None:
    generator = torch.Generator().manual_seed(5)
    method = Map(method_config(name="map", prior_precision=4.0), DIM, 2)
    lines, _ = clicks(torch.zeros(2, DIM).double(), 5, generator)
    covariance = method.covariance(torch.zeros(2, DIM), lines.taken(torch.arange(5, 10)))
    assert torch.allclose(covariance[0], torch.eye(DIM).double() / 4)
    assert torch.linalg.eigvalsh(covariance[0] - covariance[1]).min() >= -1e-12
