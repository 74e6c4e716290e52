"""Bad input: the class and text of the error, and that nothing was touched."""

import numpy as np
import pytest
import torch

import fastops

FUNCTIONS = {name: getattr(fastops, name) for name in ("softmax", "log_softmax", "logsumexp")}
NORMALIZERS = {name: FUNCTIONS[name] for name in ("softmax", "log_softmax")}


def x_of(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype)


# (arguments after x, error, a part of its text); x is (2, 3, 4) float32
BAD = [
    ({"dim": 3}, ValueError, "expected dim in [-3, 2] for x of 3 dims, got 3"),
    ({"dim": -4}, ValueError, "expected dim in [-3, 2]"),
    ({"dim": (0, -3)}, ValueError, "expected distinct dims"),
    ({"dim": ()}, ValueError, "expected at least one dim"),
    ({"dim": 1.0}, TypeError, "expected dim to be an int or a tuple of ints, got float"),
    ({"dim": None}, TypeError, "expected dim to be an int"),
    ({"mask": torch.ones(4)}, TypeError, "expected mask of dtype torch.bool, got torch.float32"),
    ({"mask": [True]}, TypeError, "expected mask to be a tensor or an array, got list"),
    ({"mask": torch.ones(5, dtype=torch.bool)}, ValueError, "expected mask to broadcast to"),
    ({"mask": torch.ones(1, 1, 1, 4, dtype=torch.bool)}, ValueError, "expected mask to broadcast"),
    ({"bias": torch.ones(4, dtype=torch.int64)}, TypeError, "expected bias of dtype torch.float32"),
    ({"bias": torch.ones(4).double()}, TypeError, "expected bias of dtype torch.float32"),
    ({"bias": torch.ones(2, 1, 2)}, ValueError, "expected bias to broadcast to x.shape (2, 3, 4)"),
    ({"bias": torch.ones(4, device="meta")}, ValueError, "expected bias on cpu as x is, got meta"),
    ({"lengths": torch.ones(3)}, TypeError, "expected lengths of dtype torch.int32 or torch.int64"),
    ({"lengths": torch.tensor([1, 2])}, ValueError, "expected lengths to broadcast to one value"),
    ({"lengths": torch.tensor([1, 5, 2])}, ValueError, "expected lengths in [0, 4], got 5"),
    ({"lengths": torch.tensor([1, -1, 2])}, ValueError, "expected lengths in [0, 4], got -1"),
    ({"lengths": torch.ones(2, 3, 4, dtype=torch.int64)}, ValueError, "one value per row"),
    ({"causal": "lower_left"}, ValueError, "expected causal to be one of"),
    ({"causal": 1}, TypeError, "expected causal to be one of"),
    ({"causal": True, "dim": 1}, ValueError, "expected dim == -1 for causal"),
    ({"scale": "2"}, TypeError, "expected scale to be a number or a tensor, got str"),
    ({"scale": True}, TypeError, "expected scale to be a number or a tensor, got bool"),
    ({"scale": torch.ones(3, dtype=torch.int64)}, TypeError, "expected scale of dtype float32"),
    ({"scale": torch.ones(4)}, ValueError, "expected scale to broadcast to one value per row"),
]
BAD_NORMALIZER = [
    ({"masked_rows": "one"}, ValueError, "expected masked_rows to be one of 'nan', 'zero'"),
    ({"masked_rows": None}, TypeError, "expected masked_rows to be one of"),
    ({"algorithm": "fast"}, ValueError, "expected algorithm to be one of 'auto', 'online'"),
    ({"return_lse": 1}, TypeError, "expected return_lse to be a bool, got int"),
    ({"dtype": torch.int32}, TypeError, "expected dtype float32, float64, float16 or bfloat16"),
    ({"dtype": "half-ish"}, TypeError, "expected dtype to be a torch.dtype"),
    ({"out": 3}, TypeError, "expected out to be a tensor or an array, got int"),
    ({"out": torch.empty(2, 3, 5)}, ValueError, "expected out of shape (2, 3, 4), got (2, 3, 5)"),
    ({"out": torch.empty(2, 3, 4).half()}, TypeError, "expected out of dtype torch.float32"),
    ({"out": torch.empty(2, 3, 4, device="meta")}, ValueError, "expected out on cpu"),
    ({"out": torch.empty(2, 3, 1).expand(2, 3, 4)}, ValueError, "without elements that share memo"),
    ({"out": torch.empty(2, 3, 4), "return_lse": True}, TypeError, "expected out to be a pair"),
    (
        {"out": (torch.empty(2, 3, 4), torch.empty(2, 4)), "return_lse": True},
        ValueError,
        "expected lse of out of shape (2, 3), got (2, 4)",
    ),
]


def check_raises(function, name, arguments, error, text):
    x = x_of(2, 3, 4)
    before = x.clone()
    arguments = dict(arguments)
    dim = arguments.pop("dim", -1)
    with pytest.raises(error) as caught:
        function(x, dim, **arguments)
    message = str(caught.value)
    assert message.startswith(f"fastops.{name}: "), message
    assert text in message
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("arguments, error, text", BAD)
def test_bad_argument(name, arguments, error, text):
    check_raises(FUNCTIONS[name], name, arguments, error, text)


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("arguments, error, text", BAD_NORMALIZER)
def test_bad_argument_of_normalizer(name, arguments, error, text):
    check_raises(FUNCTIONS[name], name, arguments, error, text)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_dtype_of_x(name, dtype):
    with pytest.raises(TypeError, match=f"fastops.{name}: expected x of dtype float32"):
        FUNCTIONS[name](torch.ones(3, dtype=dtype), -1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_x_not_a_tensor(name):
    with pytest.raises(TypeError, match="expected x to be a tensor or an array, got list"):
        FUNCTIONS[name]([1.0, 2.0], -1)
    with pytest.raises(TypeError, match="expected x of a strided layout"):
        FUNCTIONS[name](torch.ones(2, 2).to_sparse(), -1)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_integer_x_with_dtype(name):
    x = torch.randint(-3, 4, (5, 7))
    expected = getattr(torch, name)(x, -1, dtype=torch.float32)
    torch.testing.assert_close(NORMALIZERS[name](x, dtype=torch.float32), expected)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_out_overlaps(name):
    base = torch.randn(4, 9)
    before = base.clone()
    softmax = NORMALIZERS[name]
    with pytest.raises(ValueError, match="expected out and x in separate memory"):
        softmax(base[:, :8], out=base[:, 1:])
    square = base[:, :4]
    with pytest.raises(ValueError, match="expected out and x in separate memory"):
        softmax(square, out=square.t())
    with pytest.raises(ValueError, match="expected out and bias in separate memory"):
        softmax(torch.randn(4, 9), bias=base, out=base)
    with pytest.raises(ValueError, match="expected out and x in separate memory"):
        softmax(base[:1].expand(4, 9), out=base)
    assert torch.equal(base, before)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_out_interleaved_with_x_is_fine(name):
    base = torch.randn(4, 10)
    x = base[:, ::2]
    expected = getattr(torch, name)(x, -1)
    NORMALIZERS[name](x, out=base[:, 1::2])
    torch.testing.assert_close(base[:, 1::2], expected)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_in_place(name):
    for x in (torch.randn(4, 9), torch.randn(9, 4).t(), torch.randn(4, 18)[:, ::2]):
        expected = getattr(torch, name)(x, -1)
        assert NORMALIZERS[name](x, out=x) is x
        torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_out_returned_and_written(name):
    x, out, lse = torch.randn(4, 9), torch.empty(4, 9), torch.empty(4)
    assert NORMALIZERS[name](x, out=out) is out
    torch.testing.assert_close(out, getattr(torch, name)(x, -1))
    pair = NORMALIZERS[name](x, scale=0.5, return_lse=True, out=(out, lse))
    assert pair[0] is out and pair[1] is lse
    torch.testing.assert_close(lse, torch.logsumexp(x * 0.5, -1))


@pytest.mark.parametrize("name", NORMALIZERS)
def test_out_with_gradient(name):
    x = torch.randn(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="out= does not support automatic differentiation"):
        NORMALIZERS[name](x, out=torch.empty(4))
    with pytest.raises(RuntimeError, match="out= does not support automatic differentiation"):
        NORMALIZERS[name](x.detach(), out=torch.empty(4, requires_grad=True))
    with torch.no_grad():
        out = NORMALIZERS[name](x, out=torch.empty(4))
    assert not out.requires_grad


def test_numpy_errors():
    x = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="expected x without negative strides"):
        fastops.softmax(x[:, ::-1])
    frozen = np.empty((2, 3), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="expected out to be writeable"):
        fastops.softmax(x, out=frozen)
    with pytest.raises(TypeError, match="expected x of a dtype torch shares with NumPy"):
        fastops.softmax(np.array(["a"]))
