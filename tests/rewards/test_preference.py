from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import nn

from dina.errors import DinaError
from dina.rewards.extras import load_weights
from dina.rewards.preference import AestheticReward, HPSReward, PickScoreReward
from dina.rewards.quality import ImageQualityReward, quality_of
from tests.rewards import tiny_models


def photo(seed: int, side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> str:
    return tiny_models.clip(tmp_path_factory.mktemp("clip"))


def published_head() -> nn.Sequential:
    """The layers of improved-aesthetic-predictor, as narrow as the tiny CLIP."""
    torch.manual_seed(0)
    dropout = nn.Dropout(0.2)
    return nn.Sequential(
        nn.Linear(16, 8), dropout, nn.Linear(8, 4), dropout, nn.Linear(4, 3), dropout, nn.Linear(3, 2), nn.Linear(2, 1)
    ).eval()  # fmt: skip


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_aesthetic_head_is_that_of_the_published_file(suffix: str, clip_folder: str, tmp_path):
    head = published_head()
    weights = {f"layers.{name}": value for name, value in head.state_dict().items()}
    file = tmp_path / f"head{suffix}"
    torch.save(weights, file) if suffix == ".pth" else save_file(weights, file)
    reward = AestheticReward(str(file), clip_folder, device="cpu")
    logged: dict[str, list] = {}
    scores = reward([photo(0), None, photo(1)], log_extra=logged.__setitem__)
    with torch.no_grad():
        expected = head(reward.clip.images([photo(0), photo(1)])).squeeze(-1).tolist()
    assert [scores[0], scores[2]] == pytest.approx([value / 10 for value in expected], abs=1e-5)
    assert scores[1] is None and logged["rating"][0] == pytest.approx(expected[0], abs=1e-4)


def test_wrong_files_are_refused(clip_folder: str, tmp_path):
    with pytest.raises(DinaError, match="does not exist"):
        AestheticReward(str(tmp_path / "none.pth"), clip_folder, device="cpu")([photo(0)])
    torch.save({"state_dict": {"weight": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(DinaError, match="does not hold the LAION aesthetic head"):
        AestheticReward(str(tmp_path / "other.pth"), clip_folder, device="cpu")([photo(0)])
    torch.save({"state_dict": {"weight": Harmful()}}, tmp_path / "harmful.pth")
    with pytest.raises(DinaError, match="cannot be read as plain weights"):
        load_weights(tmp_path / "harmful.pth")
    assert not Harmful.made
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DinaError, match="holds no state dict"):
        load_weights(tmp_path / "list.pt")


class Harmful:
    """Would run code if it were unpickled."""

    made: list[int] = []

    def __reduce__(self):
        return (Harmful.made.append, (1,))


def test_pick_score_is_the_scaled_cosine(clip_folder: str):
    images, prompts = [photo(0), None, photo(1)], ["a red star", "x", "a circle"]
    logged: dict[str, list] = {}
    reward = PickScoreReward(clip_folder, clip_folder, device="cpu", batch_size=1)
    scores = reward(prompts, images, log_extra=logged.__setitem__)
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(clip_folder)
    for i in (0, 2):
        inputs = processor(images=images[i], text=[prompts[i]], return_tensors="pt")
        with torch.no_grad():
            logit = model(**inputs).logits_per_image.item()
        assert logged["pick_score"][i] == pytest.approx(logit, abs=1e-3)
        assert scores[i] == pytest.approx(logit / 26, abs=1e-4)
    assert scores[1] is None


def test_hps_is_the_cosine_of_open_clip(tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="needs the extra hps")
    tower = {"layers": 1, "width": 32}
    config = {
        "embed_dim": 16,
        "vision_cfg": tower | {"image_size": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": tower | {"context_length": 32, "vocab_size": 49408, "heads": 2},
    }
    (tmp_path / "dina-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "dina-tiny.json")
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms("dina-tiny", pretrained=None)
    model.eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "hps.pt")
    reward = HPSReward(str(tmp_path / "hps.pt"), "dina-tiny", batch_size=1, device="cpu")
    scores = reward(["a star", "x", "a circle"], [photo(0), None, photo(1)])
    with torch.no_grad():
        pictures = model.encode_image(torch.stack([transform(photo(0)), transform(photo(1))]), normalize=True)
        tokens = open_clip.get_tokenizer("dina-tiny")(["a star", "a circle"])
        texts = model.encode_text(tokens, normalize=True)
    assert scores[1] is None
    assert [scores[0], scores[2]] == pytest.approx((pictures * texts).sum(-1).tolist(), abs=1e-5)
    torch.save({"state_dict": {"weight": torch.ones(1)}}, tmp_path / "other.pt")
    with pytest.raises(DinaError, match="does not fit dina-tiny"):
        HPSReward(str(tmp_path / "other.pt"), "dina-tiny", device="cpu")(["a"], [photo(0)])


@pytest.mark.parametrize("reward, extra", [(HPSReward, "hps"), (ImageQualityReward, "quality")])
def test_a_missing_package_is_an_error_that_names_the_extra(reward, extra: str, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DinaError, match=rf"pip install 'dina-rl\[{extra}\]'"):
        reward()


def test_quality_falls_with_noise_and_blur():
    pytest.importorskip("brisque", reason="needs the extra quality")
    # Smooth light over fine grain: what natural pictures have and BRISQUE looks for.
    from skimage.data import astronaut

    clean = Image.fromarray(astronaut()).resize((128, 128), Image.Resampling.LANCZOS)
    pixels = np.asarray(clean, float)
    noisy = np.clip(pixels + np.random.default_rng(0).normal(0, 60, pixels.shape), 0, 255).astype(np.uint8)
    one_colour = Image.new("RGB", (64, 64), (200, 200, 200))
    images = [clean, Image.fromarray(noisy), clean.filter(ImageFilter.GaussianBlur(4)), one_colour, None]
    logged: dict[str, list] = {}
    good, noise, blurred, blank, none = ImageQualityReward()(images, log_extra=logged.__setitem__)
    assert max(noise, blurred) < good - 0.15 and blank == 0.0 and none is None
    assert logged["brisque"][3] is None
    assert 0 <= ImageQualityReward()([photo(0, side=4)])[0] <= 1


@pytest.mark.parametrize("brisque, score", [(0, 1.0), (-20, 1.0), (40, 0.6), (130, 0.0), (float("nan"), 0.0)])
def test_quality_from_brisque(brisque: float, score: float):
    assert quality_of(brisque) == pytest.approx(score)
