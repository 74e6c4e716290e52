"""NMLinear: nn.Linear with an N:M sparse weight."""

from typing import Any

import torch
from torch import Tensor, nn

from ..nm.functional import ACTIVATIONS, linear, nm_compress, nm_mask
from ..nm.weight import NMWeight

__all__ = ["NMLinear"]


class NMLinear(nn.Module):
    """``activation(x @ weight.T + bias)`` with an N:M sparse weight.

    Parameters are ``values`` ``[out_features, kept]`` and ``bias``; ``indices`` (uint8) and
    ``pattern`` (int64: N, M, in_features) are buffers, so that a state dict is plain tensors that
    load on any device, under ``weights_only=True``. Loading checks them. The pattern is fixed;
    training changes the kept values only.

    Args:
        in_features: divisible by M.
        out_features: any.
        pattern: ``"N:M"``, 1 <= N <= M <= 32.
        bias: whether there is one.
        activation: fused: ``"relu"``, ``"gelu"``, ``"silu"`` or None.

    A fresh module keeps the largest of a fresh :class:`torch.nn.Linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pattern: str,
        bias: bool = True,
        activation: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dense = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        weight = nm_compress(dense.weight, pattern, mask=nm_mask(dense.weight, pattern))
        self._setup(weight.requires_grad_(), dense.bias, activation)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        pattern: str,
        *,
        scores: Tensor | None = None,
        activation: str | None = None,
    ) -> "NMLinear":
        """The pruned form of a dense layer; shares its bias and trains where its weight does.

        Args:
            scores: what decides (:func:`fastops.nm_mask`); default ``|w|``. A weight that satisfies
                the pattern already keeps all it has.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(
                f"fastops.nn.NMLinear.from_linear: expected an nn.Linear, got "
                f"{type(linear).__name__}"
            )
        mask = nm_mask(linear.weight, pattern, scores=scores)
        return cls.from_weight(
            nm_compress(linear.weight, pattern, mask=mask).requires_grad_(
                linear.weight.requires_grad
            ),
            linear.bias,
            activation=activation,
        ).train(linear.training)

    @classmethod
    def from_weight(
        cls, weight: NMWeight, bias: Tensor | None = None, *, activation: str | None = None
    ) -> "NMLinear":
        """A layer of a weight that exists; shares its memory."""
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module._setup(weight, bias, activation)
        return module

    def _setup(self, weight: NMWeight, bias: Tensor | None, activation: str | None) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"fastops.nn.NMLinear: expected activation to be 'relu', 'gelu', 'silu' or None, "
                f"got {activation!r}"
            )
        self.activation = activation
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self._pattern = weight._pattern
        trains = weight.values.requires_grad
        self.values = nn.Parameter(weight.values.detach(), requires_grad=trains)
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
        self.register_parameter("bias", bias)
        self.register_buffer("indices", weight.indices)
        self.register_buffer("pattern", torch.tensor([*self._pattern, self.in_features]))

    @property
    def weight(self) -> NMWeight:
        """The weight, sharing this module's memory."""
        return NMWeight(self.values, self.indices, self._pattern, self.in_features, _checked=True)

    def forward(self, x: Tensor) -> Tensor:
        return linear(
            "fastops.nn.NMLinear",
            x,
            self.values,
            self.indices,
            self._pattern,
            self.in_features,
            self.bias,
            self.activation,
        )

    def extra_repr(self) -> str:
        text = (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"pattern={self._pattern}, bias={self.bias is not None}"
        )
        return text + (f", activation={self.activation}" if self.activation else "")

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors
    ):
        """Checks what comes from a file before it takes the place of what is here."""
        values, indices, shape = (
            state_dict.get(prefix + name) for name in ("values", "indices", "pattern")
        )
        if values is not None and indices is not None and shape is not None:
            try:
                n, m, in_features = (int(v) for v in shape.tolist())
                weight = NMWeight(values, indices, f"{n}:{m}", in_features)
                same_pattern = weight._pattern == self._pattern
                if not same_pattern or weight.shape != (self.out_features, self.in_features):
                    raise ValueError(
                        f"fastops.nn.NMLinear: expected a {self._pattern} weight of "
                        f"{(self.out_features, self.in_features)}, got {weight}"
                    )
            except (TypeError, ValueError) as error:
                errors.append(f"{prefix or 'the module'}: {error}")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected, errors
        )
