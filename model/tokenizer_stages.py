"""The two stages of tokenizer training as losses over a batch of pictures (paper §2.2.3, §2.2.4, §4.1.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dina.model.packing import Grid
from dina.model.quantizer import Quantized
from dina.model.tokenizer_config import DetokenizationStage, TokenizationStage
from dina.model.visual_tokenizer import DinaVisualTokenizer

Metrics = dict[str, float]
FeaturesOf = Callable[[Sequence[Tensor], Sequence[Grid]], Tensor]


class Tokenization(nn.Module):
    """Stage 1. Its two small decoders serve the losses alone and are not part of the tokenizer.

    The semantic loss is ``1 - cosine`` between a target feature of each token and what ``semantic_head``
    makes of the token's code vectors. The pixel loss asks ``pixel_head`` for the token's own pixels, so it
    teaches nothing that would tie a code to its neighbours.
    """

    def __init__(self, tokenizer: DinaVisualTokenizer, settings: TokenizationStage) -> None:
        super().__init__()
        config = tokenizer.config
        self.settings = settings
        width = config.quantizer.codebook_dim
        self.token_values = config.patch_values * config.spatial_merge_size**2
        inner = 2 * config.out_hidden_size
        self.pixel_head = _mlp(width, inner, inner, self.token_values)
        self.teacher_features: FeaturesOf | None = None
        target = config.out_hidden_size
        if settings.semantic_target == "pixels":
            target = self.token_values
        elif settings.semantic_target != "features":
            teacher = DinaVisualTokenizer.from_pretrained(settings.semantic_target).to(tokenizer.device)
            # Only its method is kept, so that checkpoints do not hold the teacher's weights.
            self.teacher_features = teacher.requires_grad_(False).features
            target = teacher.config.out_hidden_size
        self.semantic_head = _mlp(width, config.out_hidden_size, target)

    def trained(self, tokenizer: DinaVisualTokenizer) -> list[nn.Parameter]:
        modules = [tokenizer.visual_bridge_model, self.pixel_head, self.semantic_head]
        if self.settings.train_encoder:
            modules.append(tokenizer.visual_model)
        return [parameter for module in modules for parameter in module.parameters()]

    def forward(
        self, tokenizer: DinaVisualTokenizer, images: Sequence[Tensor], step: int
    ) -> tuple[Tensor, Metrics]:
        """Loss of one batch; the codebooks take their EMA step on the way."""
        grids = [tokenizer.grid_of(image) for image in images]
        patches = tokenizer.patches(images)
        hidden, order = tokenizer.visual_model(patches, grids)
        features = tokenizer.visual_bridge_model.bridge(hidden, order)
        pixels = patches.view(-1, self.token_values)
        if step < self.settings.initialise_at:
            latents = tokenizer.quantizer.quant_conv(features)
            pixel_loss = _pixel_loss(self.pixel_head(latents), pixels)
            return pixel_loss, {"pixel_loss": pixel_loss.item()}
        result = tokenizer.quantizer(features)
        restarted = tokenizer.quantizer.quantize.update(result)
        vectors = result.straight_through
        commitment = result.commitment_loss()
        semantic = self._semantic_loss(vectors, features, pixels, images, grids)
        pixel = _pixel_loss(self.pixel_head(vectors), pixels)
        s = self.settings
        loss = s.commitment_weight * commitment + s.semantic_weight * semantic + s.pixel_weight * pixel
        metrics = {
            "commitment_loss": commitment.item(),
            "semantic_loss": semantic.item(),
            "pixel_loss": pixel.item(),
            "codes_restarted": float(restarted),
        }
        return loss, metrics | _usage(result)

    def _semantic_loss(
        self,
        vectors: Tensor,
        features: Tensor,
        pixels: Tensor,
        images: Sequence[Tensor],
        grids: Sequence[Grid],
    ) -> Tensor:
        if self.teacher_features is not None:
            target = self.teacher_features(images, grids)
        else:
            target = pixels if self.settings.semantic_target == "pixels" else features
        return (1 - F.cosine_similarity(self.semantic_head(vectors), target.detach(), dim=-1)).mean()

    @torch.no_grad()
    def initialise(self, tokenizer: DinaVisualTokenizer, images: Sequence[Tensor]) -> None:
        """Seeds the codebooks from the latents of some pictures."""
        grids = [tokenizer.grid_of(image) for image in images]
        latents = tokenizer.quantizer.quant_conv(tokenizer.features(images, grids))
        tokenizer.quantizer.quantize.initialise(latents)


def detokenization_loss(
    tokenizer: DinaVisualTokenizer,
    images: Sequence[Tensor],
    codes: Sequence[Tensor],
    settings: DetokenizationStage,
) -> tuple[Tensor, Metrics]:
    """Stage 2's pixel loss (eq. 6 without the adversarial and perceptual networks).

    Args:
        images: pictures ``[3, H, W]`` in 0..1.
        codes: theirs, ``[h, w, L]``.
    """
    grids = [(code.shape[0], code.shape[1]) for code in codes]
    flat = torch.cat([code.flatten(0, 1) for code in codes])
    predicted = tokenizer.image_decoder(tokenizer.quantizer.lookup(flat), grids)
    target = tokenizer.patches(images)
    l1, l2 = F.l1_loss(predicted, target), F.mse_loss(predicted, target)
    loss = settings.l1_weight * l1 + settings.l2_weight * l2
    metrics = {"l1_loss": l1.item(), "l2_loss": l2.item()}
    if settings.edge_weight:
        fold = tokenizer.image_decoder.fold
        error = [_edges(a - b) for a, b in zip(fold(predicted, grids), fold(target, grids), strict=True)]
        edge = torch.stack(error).mean()
        loss = loss + settings.edge_weight * edge
        metrics["edge_loss"] = edge.item()
    return loss, metrics


def _pixel_loss(predicted: Tensor, target: Tensor) -> Tensor:
    # The absolute error keeps pale things from being sacrificed, which the squared error alone would do.
    return F.l1_loss(predicted, target) + F.mse_loss(predicted, target)


def _edges(difference: Tensor) -> Tensor:
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def _usage(result: Quantized) -> Metrics:
    """Entropy of the codes of the batch, per level, in nats."""
    metrics = {}
    for level, codes in enumerate(result.codes.T):
        share = torch.bincount(codes).float() / len(codes)
        metrics[f"level_{level}/entropy"] = torch.special.entr(share).sum().item()
    return metrics


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.GELU()]
    return nn.Sequential(*layers[:-1])
