"""NMLinear and sparsify_."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastops
from fastops.nn import NMLinear
from tests.nm.samples import DTYPES, randn


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_from_linear(dtype, bias):
    torch.manual_seed(0)
    linear = nn.Linear(16, 6, bias=bias, dtype=dtype)
    module = NMLinear.from_linear(linear, "2:4")
    x = randn(5, 16, dtype=dtype)
    pruned = fastops.nm_prune(linear.weight, "2:4")
    torch.testing.assert_close(module(x), F.linear(x, pruned, linear.bias))
    assert module.bias is linear.bias and module.values.requires_grad
    assert "in_features=16, out_features=6, pattern=2:4" in repr(module)


def test_scores_and_activation():
    linear = nn.Linear(16, 6)
    scores = torch.rand(6, 16)
    module = NMLinear.from_linear(linear, "1:4", scores=scores, activation="gelu")
    pruned = fastops.nm_prune(linear.weight, "1:4", scores=scores)
    x = randn(5, 16)
    torch.testing.assert_close(module(x), F.gelu(F.linear(x, pruned, linear.bias)))
    with pytest.raises(ValueError, match="expected activation"):
        NMLinear(16, 6, "2:4", activation="tanh")


def test_training_keeps_the_pattern():
    torch.manual_seed(0)
    module = NMLinear(16, 6, "2:4")
    columns = module.weight.columns()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    x, target = randn(32, 16), randn(32, 6, seed=3)
    losses = []
    for _ in range(20):
        loss = F.mse_loss(module(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(module.weight.columns(), columns)
    torch.testing.assert_close(module(x), F.linear(x, module.weight.dense(), module.bias))


@pytest.mark.parametrize("dtype", DTYPES)
def test_state_dict_round_trip(dtype):
    torch.manual_seed(0)
    source, target = NMLinear(16, 6, "2:4"), NMLinear(16, 6, "2:4", dtype=dtype)
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert all(type(t) is torch.Tensor for t in state.values())
    x = randn(5, 16, dtype=dtype)
    target(x)  # a packing that loading must outdate
    target.load_state_dict(state)
    expected = F.linear(x, source.weight.dense().to(dtype), source.bias.to(dtype))
    torch.testing.assert_close(target(x), expected)
    assert target.values.dtype == dtype


def test_broken_state_is_refused_and_nothing_changes():
    module = NMLinear(16, 6, "2:4")
    before = {k: v.clone() for k, v in module.state_dict().items()}
    broken = {**before, "indices": torch.full_like(before["indices"], 0xFF)}
    with pytest.raises(RuntimeError, match="rise strictly below 4"):
        module.load_state_dict(broken)
    with pytest.raises(RuntimeError, match="expected a 2:4 weight"):
        module.load_state_dict(NMLinear(16, 6, "1:2").state_dict())
    assert all(torch.equal(module.state_dict()[k], v) for k, v in before.items())
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict({k: v for k, v in before.items() if k != "indices"})


def test_module_moves():
    module = NMLinear(16, 6, "2:4").to(torch.bfloat16)
    assert module.values.dtype == torch.bfloat16 and module.indices.dtype == torch.uint8
    assert module(randn(2, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
    x = torch.empty(2, 16, dtype=torch.bfloat16, device="meta")
    assert module.to("meta")(x).shape == (2, 6)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 16)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.again = self.body[0]
        self.odd = nn.Linear(15, 4)
        self.attention = nn.MultiheadAttention(16, 2)
        self.head = nn.Linear(16, 16, bias=False)
        self.head.weight = self.embed.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 4))
        self.double = nn.Linear(16, 4, dtype=torch.float64)
        self.kept = nn.Linear(16, 4)

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens)))


def test_sparsify():
    torch.manual_seed(0)
    model = Model()
    expected = [fastops.nm_prune(layer.weight, "2:4") for layer in (model.body[0], model.body[2])]
    scores = {"body.0": model.body[0].weight.detach().abs()}
    report = fastops.sparsify_(model, "2:4", lambda name, layer: name != "kept", scores)
    assert report.swapped == ["body.0", "body.2"]
    assert isinstance(model.body[0], NMLinear) and model.again is model.body[0]
    for module, w in zip((model.body[0], model.body[2]), expected, strict=True):
        assert torch.equal(module.weight.dense(), w)
    reasons = {
        "odd": "in_features 15 is not divisible by 4",
        "attention.out_proj": "NonDynamicallyQuantizableLinear",
        "head": "shared with embed",
        "normed": "parametrized",
        "double": "float64",
        "kept": "filter said no",
    }
    assert set(report.left) == set(reasons)
    for name, why in reasons.items():
        assert why in report.left[name] and name in str(report)
    assert model(torch.arange(5)).shape == (5, 16)


def test_sparsify_refusals():
    with pytest.raises(ValueError, match=r"an nn\.Linear itself"):
        fastops.sparsify_(nn.Linear(4, 4), "2:4")
    with pytest.raises(TypeError, match=r"expected model to be an nn.Module"):
        fastops.sparsify_(torch.zeros(1), "2:4")
    with pytest.raises(ValueError, match="expected pattern"):
        fastops.sparsify_(nn.Sequential(nn.Linear(4, 4)), "5:4")
