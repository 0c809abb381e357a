"""Rewards that go wrong, for processes that must not load torch to run them."""

from __future__ import annotations

import os
import signal
import time


def fine(prompts, **columns):
    return [0.5] * len(prompts)


def tells_process(prompts, log_extra, log_metric):
    log_extra("pid", [os.getpid()] * len(prompts))
    log_metric("threads", 3.0)
    return [{"score": 0.25, "half": 0.5}] * len(prompts)


async def reads_pictures(generated_images, **columns):
    return [image.getpixel((0, 0))[0] / 255 for image in generated_images]


def raises(prompts, **columns):
    raise RuntimeError("no such file: weights.bin")


def one_short(prompts, **columns):
    return [1.0] * (len(prompts) - 1)


def one_number(prompts, **columns):
    return 1.0


def not_a_number(prompts, **columns):
    return [float("nan")] * len(prompts)


def exits(prompts, **columns):
    raise SystemExit(3)


def allocates(prompts, **columns):
    kept = []
    while True:
        kept.append(bytearray(64 * 2**20))


def hangs(prompts, **columns):
    time.sleep(3600)


def is_killed(prompts, **columns):
    os.kill(os.getpid(), signal.SIGKILL)


def strikes(id, prompts, victim, fault, **columns):
    """What the reward ``fault`` of this module gives in a call with the prompt ``victim``, and 0.5 in all others."""
    return globals()[fault](prompts) if victim in id else [0.5] * len(id)


def killed_on_mark_1(mark, **columns):
    if 1 in mark:
        os.kill(os.getpid(), signal.SIGKILL)
    return [1.0] * len(mark)


def hangs_on_mark_1(mark, **columns):
    if 1 in mark:
        time.sleep(3600)
    return [1.0] * len(mark)


class BadSetup:
    def setup(self):
        raise FileNotFoundError("w.bin")

    def __call__(self, prompts):
        return [0.0] * len(prompts)


class DiesInSetup:
    def setup(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, prompts):
        return [0.0] * len(prompts)
