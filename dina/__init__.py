"""Reinforcement-learning post-training for discrete native autoregressive (DiNA) multimodal models."""

__version__ = "0.1.0"
