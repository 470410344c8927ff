"""The one seam to a language model: a plan of generations in, generations out, exactly one for each id.

``type: vllm`` runs vLLM actors under Ray Data (``ray.data.llm``) on CPU or GPU; ``type: openai`` calls
an OpenAI-compatible endpoint. Prompts are rendered and tokenized by ``trimtab.chat`` alone: Ray's own
template and tokenize stages are off.
"""

from trimtab.engine.config import EngineConfig, OpenAIEngine, VLLMEngine
from trimtab.engine.endpoint import NO_COMPLETION, read_completion, was_refused
from trimtab.engine.ids import ids_in
from trimtab.engine.run import generate, generate_plan
from trimtab.engine.vllm_stage import bundles, engine_env, engine_kwargs, weight_type

__all__ = [
    "NO_COMPLETION",
    "EngineConfig",
    "OpenAIEngine",
    "VLLMEngine",
    "bundles",
    "engine_env",
    "engine_kwargs",
    "generate",
    "generate_plan",
    "ids_in",
    "read_completion",
    "was_refused",
    "weight_type",
]
