"""Where a language model runs: vLLM actors on this Ray, or an OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from trimtab.config import Config, placement


class VLLMEngine(Config):
    """vLLM actors on this Ray, each holding the model."""

    type: Literal["vllm"] = "vllm"
    accelerators: int = placement(0, ge=0)
    """GPUs of one actor; 0 runs on CPU."""
    tensor_parallel_size: int = placement(1, ge=1)
    """Passed to vLLM; ``accelerators`` must be a multiple of it."""
    num_actors: int = placement(1, ge=1)
    """Engine actors: a fixed pool, or the least of an autoscaling one."""
    max_actors: int | None = placement(None, ge=1)
    """Most actors of an autoscaling pool; none: the pool is fixed."""
    cpus_per_actor: float = placement(1, gt=0)
    """Logical CPUs that one actor asks of Ray."""
    cores_per_actor: int | None = placement(None, ge=1)
    """CPU only: cores that each actor computes on; none: an equal share of the machine's."""
    max_model_len: int = Field(2048, ge=16)
    """Longest prompt and answer together, in tokens."""
    block_size: int = placement(32, ge=16)
    """KV-cache block in tokens; small blocks let short shared prefixes hit the cache (a multiple of 32 on CPU)."""
    kv_cache_gib: int = placement(2, ge=1)
    """CPU only: memory of the KV cache."""
    max_num_seqs: int = placement(256, ge=1)
    """Sequences decoded together."""
    max_num_batched_tokens: int | None = placement(None, ge=1)
    """Most tokens of one engine step; none: vLLM's own choice, when generating that of ``vllm.LLM`` (4096 on CPU, 8192
    on a GPU) and not the smaller one of a server."""
    rows_per_batch: int = placement(32, ge=1)
    """Rows that an engine is handed at once."""
    batches_per_block: int = placement(1, ge=1)
    """Batches of one block, which is scheduled at once and committed as one file: what a crash can cost. Scheduling
    takes some 50 ms of CPU a block: take more batches where an engine is done with one in much less than a second."""
    num_concurrent_batches: int | None = placement(None, ge=1)
    """Blocks in flight in one actor; none: as many as hold ``max_num_seqs`` rows twice over, since a block makes room
    for the next one only when its last row is done."""
    seed: int = 0
    """Seed of the engine's sampling; with batching, a sampled text is not exactly repeatable."""
    dtype: str = "auto"
    """Weight type, as vLLM names it; ``auto`` is the model's own, or float32 on a CPU that is slow in bfloat16."""
    engine_kwargs: dict[str, Any] = placement(default_factory=dict)
    """Further arguments for vLLM, as they are."""

    @property
    def most_actors(self) -> int:
        """Actors of the pool when it is largest."""
        return self.max_actors or self.num_actors

    @property
    def rows_per_block(self) -> int:
        """Rows of one block and of one committed file."""
        return self.rows_per_batch * self.batches_per_block


class OpenAIEngine(Config):
    """An OpenAI-compatible chat endpoint."""

    type: Literal["openai"] = "openai"
    base_url: str = placement()
    """Address of the API, ending in /v1."""
    model: str
    """Model name to send."""
    api_key_env: str = placement("OPENAI_API_KEY")
    """Environment variable that holds the key; never the key itself."""
    num_concurrent_requests: int = placement(16, ge=1)
    """Requests in flight."""
    timeout_s: float = placement(120, gt=0)
    """Time for one request."""
    max_retries: int = placement(6, ge=0)
    """Retries of the SDK, which honours Retry-After."""
    rows_per_batch: int = placement(32, ge=1)
    """Rows of one committed file: what a crash can cost."""
    configurations: Literal["system", "safety"] = "system"
    """How a safety configuration is sent: as a system turn, or by its name in the body's ``safety``, which a trimtab
    endpoint wants, since it writes the system turn itself."""

    @property
    def rows_per_block(self) -> int:
        """Rows of one block and of one committed file."""
        return self.rows_per_batch


EngineConfig = Annotated[VLLMEngine | OpenAIEngine, Field(discriminator="type")]
