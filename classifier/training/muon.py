"""Muon, the optimiser of the scratch CNN's convolutions."""

import torch


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum whose update of each convolution is orthogonalised and whose weights keep their norm.

    Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon) in the form that airbench94_muon uses for
    convolutions: a kernel is a matrix (out, in·k·k), its norm is set to √out before each step. `torch.optim.Muon` takes
    matrices only.

    Args:
        params: convolution weights, (out, in, k, k).
        lr: step size; an update has spectral norm about 1 before it is multiplied by this.
        momentum: in [0, 1).
    """

    def __init__(self, params, lr: float, momentum: float):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure
        """Takes one step with the gradients at hand."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:  # frozen
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(weight.grad)
                update = weight.grad.add(buffer, alpha=group["momentum"])
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                weight.add_(orthogonalize(update.flatten(1)).view_as(weight), alpha=-group["lr"])


def orthogonalize(matrix: torch.Tensor, steps: int = 3) -> torch.Tensor:
    """(m, n) -> a matrix with the same singular vectors and values near 1, by a quintic Newton-Schulz iteration.

    In bfloat16; the coefficients are Muon's, which raise small singular values fast rather than converge to exactly 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide if x.shape[0] <= x.shape[1] else wide.T).to(matrix.dtype)
