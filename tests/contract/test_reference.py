"""The reference itself, against torch where torch has the operation."""

import pytest
import torch

import fastops
from fastops.softmax.reference import log_softmax_reference, logsumexp_reference, softmax_reference

REFERENCES = {
    "softmax": softmax_reference,
    "log_softmax": log_softmax_reference,
    "logsumexp": logsumexp_reference,
}
INF, NAN = float("inf"), float("nan")
ROWS = torch.tensor(
    [[0.5, 1, -2], [INF, 1, 2], [-INF, 1, 2], [-INF, -INF, -INF], [NAN, 1, 2], [1e300, -1e300, 0]],
    dtype=torch.float64,
)


@pytest.mark.parametrize("name", REFERENCES)
def test_specials_as_torch(name):
    torch.testing.assert_close(
        REFERENCES[name](ROWS, -1), getattr(torch, name)(ROWS, -1), equal_nan=True
    )


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("shape, dim", [((), 0), ((3, 0), -1), ((0, 3), -1), ((3, 4), 0)])
def test_shapes_as_torch(name, shape, dim):
    x = torch.randn(shape, dtype=torch.float64)
    expected = getattr(torch, name)(x, dim)
    torch.testing.assert_close(REFERENCES[name](x, dim), expected)
    torch.testing.assert_close(getattr(fastops, name)(x, dim), expected)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_excluded_values_do_not_matter(name):
    mask = torch.tensor([True, False, True])
    for bad in (NAN, INF):
        x = torch.tensor([1.0, bad, 2.0], dtype=torch.float64, requires_grad=True)
        out = REFERENCES[name](x, mask=mask)
        torch.testing.assert_close(out[mask], getattr(torch, name)(x[mask], -1))
        assert out[1] == (0 if name == "softmax" else -INF)
        (gradient,) = torch.autograd.grad(out[mask].square().sum(), x)
        assert gradient[1] == 0 and gradient.isfinite().all()


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_empty_rows(name):
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 3, [False] * 3])
    for function in (REFERENCES[name], getattr(fastops, name)):
        assert function(x, mask=mask)[1].isnan().all()
        out, lse = function(x, mask=mask, masked_rows="zero", return_lse=True)
        assert (out[1] == (0 if name == "softmax" else -INF)).all() and lse[1] == -INF
        (gradient,) = torch.autograd.grad(out[0].square().sum() + out[1].exp().sum(), x)
        assert (gradient[1] == 0).all() and gradient.isfinite().all()


def test_lengths_count_in_row_major_order():
    x = torch.randn(2, 3, 4)
    lengths = torch.tensor([0, 3, 8, 5])
    out = fastops.softmax(x, (0, 1), lengths=lengths.clamp(max=6), masked_rows="zero")
    flat = x.reshape(6, 4)
    for column, length in enumerate(lengths.clamp(max=6).tolist()):
        expected = torch.zeros(6)
        expected[:length] = torch.softmax(flat[:length, column], 0)
        torch.testing.assert_close(out.reshape(6, 4)[:, column], expected)


def test_causal_offsets():
    x = torch.randn(3, 5)
    upper = fastops.softmax(x, causal=True) > 0
    lower = fastops.softmax(x, causal="lower_right") > 0
    assert torch.equal(upper, torch.ones(3, 5).tril().bool())
    assert torch.equal(lower, torch.ones(3, 5).tril(2).bool())
