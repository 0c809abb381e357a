"""What people like: the LAION aesthetic head, PickScore and HPS v2.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import nn

from dina.errors import DinaError
from dina.rewards.clip import Clip, for_pictures
from dina.rewards.extras import load_weights, pick_device, require
from dina.rewards.protocol import LogExtra, log_parts

_PICKSCORE_SCALE = 26.0
"""PickScores of good pictures are a little above 20; divided by this, as Flow-GRPO does, they stay below 1."""


class AestheticReward:
    """Reward: the LAION aesthetic predictor (v2, linear) on CLIP ViT-L/14, its rating of about 1 to 10 divided by 10.

    ``None`` without a drawn picture. Part: ``rating``.

    Args:
        head: file with the head's weights, ``sac+logos+ava1-l14-linearMSE`` of christophschuhmann's
            improved-aesthetic-predictor (Apache-2.0), as ``.pth`` or ``.safetensors``.
        model: hub name or folder of the CLIP model that the head was trained on.
        batch_size: pictures per forward pass.
        device: a torch device; by default a GPU if there is one.
    """

    def __init__(
        self,
        head: str,
        model: str = "openai/clip-vit-large-patch14",
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        self.clip = Clip(model, device=device, batch_size=batch_size)
        self.head = head

    def __call__(
        self,
        generated_images: Sequence[Image.Image | None],
        log_extra: LogExtra | None = None,
        **_: Any,
    ) -> list[float | None]:
        ratings = for_pictures(generated_images, self._rate)
        log_parts(log_extra, [None if rating is None else {"rating": rating} for rating in ratings])
        return [None if rating is None else rating / 10 for rating in ratings]

    @torch.inference_mode()
    def _rate(self, pictures: Sequence[Image.Image], rows: Sequence[int]) -> list[float]:
        return self._layers(self.clip.images(pictures)).squeeze(-1).tolist()

    @cached_property
    def _layers(self) -> nn.Sequential:
        return aesthetic_head(load_weights(self.head), self.head)


def aesthetic_head(weights: Mapping[str, torch.Tensor], source: str) -> nn.Sequential:
    """Five linear layers without activations between them (dropout only matters in training), 1 output.

    The published file calls them ``layers.0``, ``layers.2``, ``layers.4``, ``layers.6`` and ``layers.7``; the widths
    are read from the weights.

    Raises:
        DinaError: the weights are not those of five such layers.
    """
    layers = nn.Sequential()
    try:
        for index in (0, 2, 4, 6, 7):
            weight, bias = weights[f"layers.{index}.weight"], weights[f"layers.{index}.bias"]
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict({"weight": weight, "bias": bias})
            layers.append(layer)
    except (KeyError, RuntimeError) as error:
        raise DinaError(f"{source} does not hold the LAION aesthetic head: {error}") from error
    return layers.float().eval()


class PickScoreReward:
    """Reward: PickScore (Kirstain et al. 2023): CLIP-H trained on choices of people, divided by 26.

    ``None`` without a drawn picture. Part: ``pick_score``, the undivided score.

    Args:
        model: hub name or folder.
        processor: hub name or folder of its processor.
        batch_size: pictures per forward pass.
        device: a torch device; by default a GPU if there is one.
    """

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        batch_size: int = 16,
        device: str | None = None,
    ) -> None:
        self.clip = Clip(model, processor, device, batch_size)

    def __call__(
        self,
        prompts: Sequence[str],
        generated_images: Sequence[Image.Image | None],
        log_extra: LogExtra | None = None,
        **_: Any,
    ) -> list[float | None]:
        def score(pictures: Sequence[Image.Image], rows: Sequence[int]) -> list[float]:
            cosines = (self.clip.images(pictures) * self.clip.texts([prompts[i] for i in rows])).sum(dim=-1)
            return (self.clip.temperature * cosines).tolist()

        found = for_pictures(generated_images, score)
        log_parts(log_extra, [None if value is None else {"pick_score": value} for value in found])
        return [None if value is None else value / _PICKSCORE_SCALE for value in found]


class HPSReward:
    """Reward: HPS v2.1 (Wu et al. 2023): the cosine of an open_clip ViT-H/14 trained on choices of people.

    Good pictures lie near 0.3. ``None`` without a drawn picture. Needs the extra ``hps``.

    Args:
        checkpoint: file with the weights; by default ``HPS_v2.1_compressed.pt`` of the hub's ``xswu/HPSv2``.
        architecture: open_clip's name of the model.
        batch_size: pictures per forward pass.
        device: a torch device; by default a GPU if there is one.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        architecture: str = "ViT-H-14",
        batch_size: int = 16,
        device: str | None = None,
    ) -> None:
        require("open_clip", "hps", "the reward hps")
        self.checkpoint, self.architecture = checkpoint, architecture
        self.batch_size, self.device = batch_size, device

    def __call__(
        self, prompts: Sequence[str], generated_images: Sequence[Image.Image | None], **_: Any
    ) -> list[float | None]:
        def score(pictures: Sequence[Image.Image], rows: Sequence[int]) -> list[float]:
            found: list[float] = []
            for start in range(0, len(rows), self.batch_size):
                part = slice(start, start + self.batch_size)
                found += self._cosines(pictures[part], [prompts[i] for i in rows[part]])
            return found

        return for_pictures(generated_images, score)

    @torch.inference_mode()
    def _cosines(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        model, transform, tokenizer, device = self._loaded
        pixels = torch.stack([transform(picture) for picture in pictures]).to(device)
        of_pictures = model.encode_image(pixels, normalize=True)
        of_texts = model.encode_text(tokenizer(list(prompts)).to(device), normalize=True)
        return (of_pictures * of_texts).sum(dim=-1).float().tolist()

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any, torch.device]:
        import open_clip  # heavy: when the first picture comes

        device = pick_device(self.device)
        weights = load_weights(self.checkpoint or _hub_file("xswu/HPSv2", "HPS_v2.1_compressed.pt"))
        model, _, transform = open_clip.create_model_and_transforms(self.architecture, pretrained=None)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise DinaError(f"the checkpoint of hps does not fit {self.architecture}: {first}") from error
        tokenizer = open_clip.get_tokenizer(self.architecture)
        return model.to(device).eval(), transform, tokenizer, device


def _hub_file(repository: str, name: str) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(repository, name)
    except Exception as error:
        raise DinaError(
            f"{name} of {repository} cannot be fetched from the hub ({type(error).__name__}); "
            "give a file by `checkpoint`"
        ) from error
