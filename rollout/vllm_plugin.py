"""Makes the DiNA architecture known to vLLM (entry point group ``vllm.general_plugins``).

vLLM calls ``register`` in every process that it starts: front end, engine core and workers.
"""

from __future__ import annotations

ARCHITECTURE = "DinaForConditionalGeneration"


def register() -> None:
    """Registers the config class with transformers and the model class, by name, with vLLM. Idempotent."""
    from vllm import ModelRegistry

    import dina.model.modeling  # noqa: F401  registers model_type "dina" with transformers

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"dina.rollout.vllm_model:{ARCHITECTURE}")


def register_in_process() -> None:
    """Registers the class itself, which spares an in-process engine a helper process that only imports it."""
    from vllm import ModelRegistry

    import dina.model.modeling  # noqa: F401
    from dina.rollout.vllm_model import DinaForConditionalGeneration

    ModelRegistry.models.pop(ARCHITECTURE, None)
    ModelRegistry.register_model(ARCHITECTURE, DinaForConditionalGeneration)
