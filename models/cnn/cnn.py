"""The scratch CNN, as a `transformers` configuration and model, for images of about 32×32.

Convolution, max pooling, batch norm and an activation in stages that halve the resolution, then a linear head. The
first layer is fixed: it whitens 2×2 patches of the training images, which saves the epochs in which a network learns to
detect edges.

The layout follows airbench94 (Keller Jordan, arXiv:2404.00498) and, for the whitening layer, tysam-code's hlb-CIFAR10;
stages of three convolutions have a residual connection, as in airbench96. This file imports nothing of this project, so
that it can be copied beside the weights and loaded by anyone with `trust_remote_code=True`, and it uses only what
transformers has had since version 4.46.
"""

from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
    ViTImageProcessor,
    __version__,
)
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

WHITEN_KERNEL = 2  # pixels a side
# The input of an activation is scaled so that the result resembles GELU: hardswish(1.7 x) / 1.7 differs from it by at
# most 0.07 and takes a quarter of its time on a CPU. No code divides by 1.7, since each activation is followed by a
# convolution with batch norm, or by the head.
GAIN = {"hardswish": 1.7}
ACTIVATIONS = {*ACT2FN, "hardswish"}  # transformers below 5 does not know hardswish
VIEWS = {1: [1.0], 2: [1 / 2] * 2, 6: [1 / 4] * 2 + [1 / 8] * 4}  # {number of views: their weights}


class CifarCnnConfig(PretrainedConfig):
    """Shape of a `CifarCnnForImageClassification`.

    Args:
        widths: output channels of each stage. A stage halves the resolution.
        depths: number of 3×3 convolutions of each stage, at least 1. A stage of 3 or more has a residual connection.
        hidden_act: activation, one of `ACTIVATIONS`.
        image_size: pixels a side at which the weights were trained. Other sizes work, because pooling is global.
        num_channels: channels of the input.
        views: number of views of an image whose probabilities are averaged in evaluation mode: 1; 2 (also mirrored);
            or 6 (both also shifted by one pixel up-left and down-right). The cost is proportional.
    """

    model_type = "cifar_cnn"

    widths: list[int] | tuple[int, ...] = (64, 256, 256)
    depths: list[int] | tuple[int, ...] = (2, 2, 2)
    hidden_act: str = "gelu"
    image_size: int = 32
    num_channels: int = 3
    views: int = 1

    def validate_architecture(self):
        """Raises ValueError for invalid settings. Called by `transformers` 5 on construction."""
        if len(self.widths) != len(self.depths) or not self.widths or min(self.depths) < 1:
            raise ValueError(f"widths {self.widths} and depths {self.depths} need one positive number a stage each")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act is {self.hidden_act!r}: choose one of {', '.join(sorted(ACTIVATIONS))}")
        if self.views not in VIEWS:
            raise ValueError(f"views is {self.views}: choose 1, 2 (mirrored) or 6 (mirrored and shifted)")


def activation(name: str) -> nn.Module:
    """The activation of that name in `ACTIVATIONS`."""
    return nn.Hardswish() if name == "hardswish" else ACT2FN[name]


class Stage(nn.Module):
    """`depth` 3×3 convolutions, each followed by batch norm and activation; after the first one also 2×2 max
    pooling.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, hidden_act: str):
        super().__init__()
        channels = [in_channels, *[out_channels] * depth]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairwise(channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_channels, eps=1e-6) for _ in range(depth))
        self.act = activation(hidden_act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in, H, W) -> (N, out, H // 2, W // 2)."""
        odd_height, odd_width = x.shape[-2] % 2, x.shape[-1] % 2
        # Pooling leaves out the last row and column of an odd grid, so they are not computed.
        trimmed = odd_height or odd_width
        first, padding = cast(nn.Conv2d, self.convs[0]), (1, 1 - odd_width, 1, 1 - odd_height)
        x = F.conv2d(F.pad(x, padding), first.weight) if trimmed else first(x)
        x = self.act(self.norms[0](F.max_pool2d(x, 2)))
        shortcut = x
        for conv, norm in zip(self.convs[1:], self.norms[1:], strict=True):
            x = self.act(norm(conv(x)))
        return x + shortcut if len(self.convs) > 2 else x


class CifarCnnForImageClassification(PreTrainedModel):
    """The scratch CNN with its linear head. The processor saved beside the weights normalises `pixel_values`."""

    config_class = CifarCnnConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]

    def __init__(self, config: CifarCnnConfig):
        super().__init__(config)
        whiten_channels = 2 * config.num_channels * WHITEN_KERNEL**2  # each eigenvector and its negative
        self.whiten = nn.Conv2d(config.num_channels, whiten_channels, WHITEN_KERNEL)
        self.act = activation(config.hidden_act)
        channels = [whiten_channels, *config.widths]
        self.stages = nn.ModuleList(
            Stage(i, o, depth, config.hidden_act)
            for i, o, depth in zip(channels, config.widths, config.depths, strict=False)
        )
        self.head = nn.Linear(config.widths[-1], config.num_labels, bias=False)  # type: ignore[arg-type]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Functions of nn.init leave out tensors that were loaded from a file: transformers 5 sees to that.
        gain = GAIN.get(self.config.hidden_act, 1.0)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            elif not getattr(module.weight, "_is_hf_initialized", False):  # a slice has no such mark
                # The first channels start as the identity, so that each layer passes its input on.
                nn.init.dirac_(module.weight[: module.in_channels])
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / gain)  # large, because forward divides by the width
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, gain)
            nn.init.zeros_(module.bias)
            nn.init.zeros_(module.get_buffer("running_mean"))
            nn.init.ones_(module.get_buffer("running_var"))
            nn.init.zeros_(module.get_buffer("num_batches_tracked"))

    @torch.no_grad()
    def init_whiten(self, pixel_values: torch.Tensor, eps: float = 5e-4) -> None:
        """Sets the first layer to whiten the 2×2 patches of normalised training images (N, C, H, W), N a few thousand.

        The filters are the eigenvectors of the patches' covariance divided by the square roots of their eigenvalues,
        and the same filters negated, so that the activation preserves both signs.
        """
        k, c = WHITEN_KERNEL, pixel_values.shape[1]
        patches = F.unfold(pixel_values.float(), k).transpose(1, 2).reshape(-1, c * k * k)  # (N × positions, C·k·k)
        eigenvalues, eigenvectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (eigenvectors / (eigenvalues + eps).sqrt()).T.reshape(-1, c, k, k)
        self.whiten.weight.copy_(torch.cat([filters, -filters]) * GAIN.get(self.config.hidden_act, 1.0))

    def forward_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, widths[-1], H', W'), the feature map before pooling."""
        x = self.act(self.whiten(pixel_values))  # (N, 24, H - 1, W - 1)
        for stage in self.stages:
            x = stage(x)
        return x

    def forward_view(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> logits (N, num_labels) of that one view."""
        x = self.forward_features(pixel_values).amax(dim=(2, 3))  # (N, widths[-1])
        return self.head(x / x.shape[-1])

    def forward_views(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> logits (views, N, num_labels) for `average_views`; the first view is the unchanged image."""
        views = [pixel_values]
        if self.config.views == 6:
            padded = F.pad(pixel_values, (1, 1, 1, 1), mode="reflect")
            views += [padded[..., :-2, :-2], padded[..., 2:, 2:]]
        if self.config.views > 1:
            views = [x for view in views for x in (view, view.flip(-1))]
        return torch.stack([self.forward_view(x) for x in views])

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutputWithNoAttention | tuple:
        """(N, C, H, W) -> logits (N, num_labels), averaged over `config.views` views in evaluation mode, and the loss
        if `labels` are given.
        """
        single = self.training or self.config.views == 1
        logits = self.forward_view(pixel_values) if single else average_views(self.forward_views(pixel_values))
        loss = F.cross_entropy(logits, labels) if labels is not None else None
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


def average_views(logits: torch.Tensor) -> torch.Tensor:
    """(views, N, C) -> logits (N, C) whose softmax is the weighted mean of the views' softmaxes.

    Probabilities are averaged and not logits, because the mean should be uncertain where views disagree. The logsumexp
    of the result, the energy score of out-of-distribution detection, is the weighted mean of the views' logsumexp.
    """
    weights = logits.new_tensor(VIEWS[len(logits)])[:, None, None]
    mean = torch.logsumexp(logits.log_softmax(dim=-1) + weights.log(), dim=0)
    return mean + (weights * logits.logsumexp(dim=-1, keepdim=True)).sum(dim=0)


AutoConfig.register(CifarCnnConfig.model_type, CifarCnnConfig)
AutoModelForImageClassification.register(CifarCnnConfig, CifarCnnForImageClassification)
if int(__version__.split(".")[0]) < 5:  # there, a pipeline loads no processor for a configuration without a class of it
    AutoImageProcessor.register(CifarCnnConfig, slow_image_processor_class=ViTImageProcessor)
