"""The loss as a function of the model's outputs z, and its Hessian there.

A per-sample loss is l(z(theta)). Its Gauss-Newton matrix is J^T L J with J = dz/dtheta and L the Hessian of l in z.
Which form L has is found out from the loss itself: it is called once with a stand-in that runs the model and keeps z,
once more with a stand-in that returns z alone while the weights are moved (equal values prove that the loss sees the
model only through z), and then L is probed with vectors in z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from orderscope.sketching.gradients import Point
from orderscope.task.functional import StandIn

DENSE_LIMIT = 256  # most outputs of a sample whose loss has its Hessian formed in full
NO_GRADIENT = "no output of the model with a gradient"
# Largest relative residual of L v against an assumed form of L: float32 losses give 1e-6, a wrong form 0.1 to 1.
MATCH = 1e-3


@dataclass(frozen=True)
class OutputSplit:
    """How a sample's pseudo-gradients are drawn.

    Args:
        kind: "softmax" (cross-entropy, any positive weight per position), "elementwise" (diagonal L), "dense" (few
            outputs), or "empirical": the loss could not be split, the samples' own gradients stand in.
        leaf: which leaf of the model's output is z.
        spec: tree of the model's output.
        dim: class dimension of z (softmax only).
        shape: shape of z for a batch of one.
        why: what was seen, in words.
    """

    kind: str
    why: str
    leaf: int = 0
    spec: TreeSpec | None = None
    dim: int = -1
    shape: tuple[int, ...] = ()

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Uniform random numbers needed for one draw of one sample."""
        if self.kind == "softmax":
            return tuple(n for i, n in enumerate(self.shape) if i != self.dim)
        return self.shape


def run_model(at: Point, params: Any, rest: Any, batch: Any) -> tuple[Tensor, list[Any]]:
    """Losses of a batch, and what the model returned at each call.

    Args:
        at: weights, moments and buffers at which it is computed.
        params: the model's parameters by name.
        rest: buffers and what else the model is called with.
        batch: collated samples.
    """
    outputs: list[Any] = []
    return at.loss(params, rest, batch, wrap=lambda model: kept_outputs(model, outputs)), outputs


def kept_outputs(model: Any, outputs: list[Any]) -> StandIn:
    """A wrapper that keeps the outputs of a model.

    Args:
        model: called as always.
        outputs: each call appends what it returned.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        outputs.append(model(*args, **kwargs))
        return outputs[-1]

    return StandIn(model, call)


def loss_of_outputs(at: Point, split: OutputSplit, params: Any, rest: Any, sample: Any, fixed: list[Any], z: Tensor):
    """Loss of one sample as a function of z alone; `fixed` are the other leaves of the output.

    Args:
        at: weights, moments and buffers at which it is computed.
        split: the loss as a function of the model's outputs.
        params: the model's parameters by name.
        rest: buffers and what else the model is called with.
        sample: a batch of one.
        fixed: the other leaves of the model's output.
        z: the outputs that the loss depends on, of one sample.
    """
    leaves = [*fixed]
    leaves[split.leaf] = z
    assert split.spec is not None
    output = tree_unflatten(leaves, split.spec)
    losses = at.loss(params, rest, batch_of_one(sample), wrap=lambda model: StandIn(model, lambda *a, **k: output))
    return losses[0]


def outputs_of(at: Point, split: OutputSplit, params: Any, rest: Any, sample: Any) -> tuple[Tensor, list[Any]]:
    """z of one sample and all leaves of the output.

    Args:
        at: weights, moments and buffers at which it is computed.
        split: the loss as a function of the model's outputs.
        params: the model's parameters by name.
        rest: buffers and what else the model is called with.
        sample: a batch of one.
    """
    _, outputs = run_model(at, params, rest, batch_of_one(sample))
    leaves = tree_flatten(outputs[0])[0]
    return leaves[split.leaf], leaves


def wide(z: Tensor) -> Tensor:
    """z in float32 at least: under autocast it is rounded too much for second derivatives."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def batch_of_one(sample: Any) -> Any:
    return tree_map(lambda leaf: leaf[None], sample)


def hessian_product(loss: Callable[[Tensor], Tensor], z: Tensor, v: Tensor) -> Tensor:
    """L v by two reverse passes through the head of the loss.

    Args:
        loss: z -> loss of one sample.
        z: the outputs that the loss depends on, of one sample.
        v: in the shape of z.
    """
    return grad(lambda y: (grad(loss)(y) * v).sum())(z)


def softmax_weights(p: Tensor, v: Tensor, lv: Tensor, dim: int) -> Tensor:
    """Least-squares w per position in L v = w (p v - p (p . v)), kept as a dimension of one.

    Args:
        p: probabilities, sums of one along `dim`.
        v: a vector in z.
        lv: L v.
        dim: of the classes.
    """
    q = p * v - p * (p * v).sum(dim, keepdim=True)
    return ((lv * q).sum(dim, keepdim=True) / (q * q).sum(dim, keepdim=True).clamp_min(1e-30)).clamp_min(0)


def find_split(at: Point, samples: Any) -> OutputSplit:
    """Recognise the form of the loss on a few samples (a collated batch).

    Each form is checked by its residual on random vectors for every sample given; the first that holds is taken.

    Args:
        at: weights, moments and buffers at which the loss is looked at.
        samples: a few, collated.
    """
    params, rest = at.params, at.rest
    rows = tree_flatten(samples)[0][0].shape[0]
    split = OutputSplit("empirical", NO_GRADIENT)
    try:
        for index in range(rows):  # skip samples whose tokens are all masked
            split = _find_leaf(at, params, rest, tree_map(lambda leaf, i=index: leaf[i], samples))
            if split.why != NO_GRADIENT:
                break
    except Exception as error:  # whatever a foreign loss does with a stand-in, the empirical gradients still work
        return OutputSplit("empirical", f"the loss could not be called with the model's outputs alone ({error})")
    if split.kind == "empirical":
        return split
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(split.shape, generator=generator).to(next(iter(params.values())))
    residuals: dict[OutputSplit, float] = {}
    curved = False
    for index in range(rows):
        sample = tree_map(lambda leaf, i=index: leaf[i], samples)
        z, leaves = outputs_of(at, split, params, rest, sample)
        z = wide(z.detach())

        def loss(y: Tensor, sample: Any = sample, leaves: list[Any] = leaves) -> Tensor:
            return loss_of_outputs(at, split, params, rest, sample, leaves, y)

        try:
            lv, diagonal = hessian_product(loss, z, v), hessian_product(loss, z, torch.ones_like(z))
        except Exception as error:
            return OutputSplit("empirical", f"the loss has no second derivative in the outputs ({error})")
        scale = float(lv.norm())
        curved = curved or scale > 0
        forms = {OutputSplit("elementwise", "diagonal Hessian", split.leaf, split.spec, -1, split.shape): diagonal * v}
        for dim in range(z.dim() - 1, 0, -1):
            p = z.softmax(dim)
            w = softmax_weights(p, v, lv, dim)
            name = OutputSplit("softmax", "softmax cross-entropy", split.leaf, split.spec, dim, split.shape)
            forms[name] = w * (p * v - p * (p * v).sum(dim, keepdim=True))
        for form, predicted in forms.items():
            residual = float((predicted - lv).norm()) / scale if scale > 0 else 0.0
            residuals[form] = max(residuals.get(form, 0.0), residual)
    if not curved:
        return OutputSplit("empirical", "the loss is linear in the model's outputs, as if they were log-probabilities")
    best = sorted(residuals.items(), key=lambda item: (item[1] > MATCH, item[0].kind != "softmax"))
    if best and best[0][1] <= MATCH:
        return best[0][0]
    if z.numel() <= DENSE_LIMIT:
        return OutputSplit("dense", "dense Hessian in few outputs", split.leaf, split.spec, -1, split.shape)
    return OutputSplit("empirical", f"Hessian in {z.numel()} outputs is neither softmax nor elementwise")


def draw_output_gradient(split: OutputSplit, loss: Callable[[Tensor], Tensor], z: Tensor, noise: Tensor) -> Tensor:
    """L^(1/2) e for one draw: a vector in z whose outer product has the mean L.

    softmax: the label is drawn from the model's own softmax by inversion of `noise` in [0, 1), position by position,
    and the vector is sqrt(w) (p - onehot(label)). elementwise: sqrt(L_ii) times a random sign. dense: the same in the
    eigenbasis. Negative curvature is cut to zero.

    Args:
        split: the loss as a function of the model's outputs.
        loss: z -> loss of one sample.
        z: the outputs that the loss depends on, of one sample.
        noise: uniform numbers in [0, 1), one for each position.
    """
    if split.kind == "softmax":
        p = z.softmax(split.dim)
        v = torch.cos(torch.arange(z.numel(), device=z.device, dtype=z.dtype)).view(z.shape)
        w = softmax_weights(p, v, hessian_product(loss, z, v), split.dim)
        below = p.cumsum(split.dim) <= noise.unsqueeze(split.dim)
        label = below.sum(split.dim, keepdim=True).clamp_max(z.shape[split.dim] - 1)
        classes = torch.arange(z.shape[split.dim], device=z.device)
        onehot = classes.view([-1 if i == split.dim else 1 for i in range(z.dim())]) == label
        return w.sqrt() * (p - onehot.to(p.dtype))
    sign = torch.where(noise < 0.5, -1.0, 1.0).to(z.dtype)
    if split.kind == "elementwise":
        return hessian_product(loss, z, torch.ones_like(z)).clamp_min(0).sqrt() * sign
    eye = torch.eye(z.numel(), device=z.device, dtype=z.dtype).view(-1, *z.shape)
    matrix = vmap(lambda e: hessian_product(loss, z, e))(eye).reshape(z.numel(), z.numel())
    size = matrix.abs().amax().clamp_min(torch.finfo(matrix.dtype).tiny)  # tiny numbers would underflow
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / (2 * size))
    values = values * size
    return (vectors @ (values.clamp_min(0).sqrt() * sign.reshape(-1))).view(z.shape)


def _find_leaf(at: Point, params: Any, rest: Any, sample: Any) -> OutputSplit:
    """Which leaf of the output the loss is a function of, proved by moving the weights under a fixed z."""
    losses, outputs = run_model(at, params, rest, batch_of_one(sample))
    if len(outputs) != 1:
        return OutputSplit("empirical", f"the loss calls the model {len(outputs)} times")
    leaves, spec = tree_flatten(outputs[0])
    floating = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    moved = {n: p + 0.1 * (p.abs().mean() + 1e-3) * torch.sin(torch.arange(p.numel(), device=p.device)).view(p.shape)
             for n, p in params.items()}  # fmt: skip
    for leaf in floating:
        z = leaves[leaf].detach()
        split = OutputSplit("", "", leaf, spec, -1, tuple(z.shape))
        fixed = [y.detach() if isinstance(y, Tensor) else y for y in leaves]
        same = loss_of_outputs(at, split, moved, rest, sample, fixed, z)
        if not torch.allclose(same, losses[0].detach(), rtol=1e-5, atol=1e-7):
            return OutputSplit("empirical", "the loss uses the weights in addition to the model's outputs")
        slope = grad(lambda y, s=split, f=fixed: loss_of_outputs(at, s, params, rest, sample, f, y))(z)
        if bool(slope.abs().max() > 0):
            others = [i for i in floating if i != leaf]
            used = [i for i in others if _depends(at, spec, i, params, rest, sample, fixed)]
            if used:
                return OutputSplit("empirical", "the loss uses several outputs of the model")
            return split
    return OutputSplit("empirical", NO_GRADIENT)


def _depends(at: Point, spec: TreeSpec, leaf: int, params: Any, rest: Any, sample: Any, fixed: list[Any]) -> bool:
    split = OutputSplit("", "", leaf, spec)
    slope = grad(lambda y: loss_of_outputs(at, split, params, rest, sample, fixed, y))(fixed[leaf])
    return bool(slope.abs().max() > 0)
