"""The configuration of ``trimtab plan``: every number that the arithmetic takes, so that each can be another."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trimtab.config import Config
from trimtab.files import Location


class TrainingNumbers(Config):
    """What training is reckoned with."""

    trie_tokens: float = Field(695, gt=0)
    """Tokens of one group as a trie."""
    trie_tokens_per_pass: int = Field(8192, ge=16)
    """Tokens of one forward pass on one GPU (``max_tokens`` of ``trimtab train``)."""
    epochs: float = Field(1, gt=0)
    """Passes over the groups."""
    gradient_checkpointing: bool = True
    """Whether activations are computed again in the backward pass; the memory table shows both."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Weight type of the passes; the optimizer's master weights are float32."""
    lora_r: int = Field(24, ge=1)
    """Rank of the adapters in the table's LoRA rows, on all linear layers."""
    gpu_tflops: float = Field(312, gt=0)
    """Peak of one GPU in the passes' type, in TFLOP/s without sparsity (A100 312, H100 989)."""
    mfu: float = Field(0.3, gt=0, le=1)
    """Share of the peak that a step reaches."""
    cards_gb: tuple[float, ...] = (24, 40, 80, 141)
    """Memory of the GPUs to choose from, in GB (10⁹ bytes)."""
    reserve_share: float = Field(0.1, ge=0, lt=1)
    """Share of a card that is left for the CUDA context, fragments and the libraries."""
    bucket_elements: float = Field(5e8, ge=0)
    """Elements of one of the two buffers in which gradients travel."""
    live_parameters: float = Field(1e9, ge=0)
    """ZeRO 3: most parameters gathered at a time."""
    sub_group_elements: float = Field(1e9, gt=0)
    """ZeRO 3: parameters that one optimizer call updates."""
    save_total_limit: int = Field(1, ge=1)
    """Checkpoints kept; one more stands there while the next is written."""


class CostNumbers(Config):
    """What GPU-hours cost."""

    price_per_gpu_hour: float = Field(2.5, ge=0)
    """On demand, in your currency."""
    spot_share: float = Field(0.8, ge=0, le=1)
    """Share of the synthesis and evaluation GPU-hours that run on spot; training runs on demand."""
    spot_discount: float = Field(0.6, ge=0, lt=1)
    """How much cheaper spot is."""
    spot_redone: float = Field(0.05, ge=0)
    """Work that interruptions cause again, as a share of the spot hours."""


class DiskNumbers(Config):
    """Bytes that rows take in Parquet, measured on this project's own schemas (``cluster_limits``)."""

    chars_per_token: float = Field(4.5, gt=0)
    """Characters of a token, English."""
    request_bytes: float = Field(46.0, ge=0)
    """A request besides its texts."""
    plan_bytes: float = Field(17.0, ge=0)
    """A plan row besides its texts."""
    generation_bytes: float = Field(43.0, ge=0)
    """A generation besides its text."""
    group_bytes: float = Field(57.0, ge=0)
    """A group besides its texts."""
    pair_bytes: float = Field(0.0, ge=0)
    """An exported pair besides its texts."""
    bytes_per_char: float = Field(0.5, gt=0)
    """A character of requests, generations and groups, compressed."""
    plan_bytes_per_char: float = Field(0.227, gt=0)
    """A character of a plan row: a request's prompt repeats."""
    pair_bytes_per_char: float = Field(0.23, gt=0)
    """A character of an exported pair: a group's texts repeat, which Parquet's dictionaries save in part."""
    file_bytes: float = Field(5470.0, ge=0)
    """A file of generations besides its rows."""


class LimitNumbers(Config):
    """The data plane's own limits, measured on synthetic committed files (``cluster_limits``)."""

    driver_gib: float = Field(1.0, gt=0)
    """Memory that the driver may take for each of these, in GiB."""
    resume_minutes: float = Field(30.0, gt=0)
    """Longest time to look through an output before a resumed run goes on."""
    look_s: float = Field(10.0, gt=0)
    """Longest time of one look at the committed files; a running stage looks about every second."""
    driver_bytes_per_id: float = Field(10.8, gt=0)
    """Driver's memory for an id, on resume and at the end."""
    driver_bytes_per_file: float = Field(405.0, ge=0)
    """Driver's memory for a committed file, on resume and at the end."""
    driver_bytes_per_task: float = Field(4360.0, ge=0)
    """What Ray keeps in the driver of a task, each of which makes a file, until the stage ends."""
    driver_bytes_per_request: float = Field(5510.0, gt=0)
    """Driver's memory for a source row while requests are selected and near-duplicates looked for."""
    seconds_per_1000_ids: float = Field(0.0039, ge=0)
    """Reading and checking ids on resume."""
    seconds_per_1000_files: float = Field(1.11, ge=0)
    """Opening and reading committed files on resume (local disk; a store: ``store_request_s``)."""
    seconds_per_1000_files_listed: float = Field(0.0036, ge=0)
    """One look at a folder in which nothing is new."""
    seconds_per_1000_requests: float = Field(0.1, ge=0)
    """Selecting requests, near-duplicates included; one process."""
    filter_bytes_per_id: float = Field(77.0, gt=0)
    """Ray Data's list of finished ids, in each actor that leaves them out on resume."""
    filter_gib: float = Field(2.0, gt=0)
    """Memory that such an actor may take."""
    worker_bytes_per_group: float = Field(245.0, gt=0)
    """Memory of a training worker for a group's id (its tokens are memory-mapped)."""


class PlanConfig(Config):
    """``trimtab plan``: GPU-hours, time, memory, storage and cost. Estimates only; nothing is started."""

    model: str = "7b"
    """A size (0.5b, 1.5b, 3b, 7b, 8b, 13b, 70b) or a folder with a config.json."""
    num_requests: tuple[int, ...] = (50_000, 5_000_000)
    """Requests of each run to reckon: 50,000 give 750,000 pairs, 5,000,000 give 75 million."""
    measured: Location | None = None
    """Finished output of ``trimtab synthesize``: generations a request, tokens a generation, tokens/s."""
    generations_per_request: float = Field(5, gt=0)
    """Rows of the plan for a request."""
    responses_per_group: int = Field(6, ge=2)
    """Ranked answers of a group, N·(N−1)/2 pairs."""
    flips: int = Field(0, ge=0)
    """Flipped copies of each group (CST)."""
    prompt_tokens: float = Field(60, ge=0)
    """Tokens of a request's prompt."""
    prefill_tokens: float = Field(60, ge=0)
    """Tokens of harmful start in the mean plan row."""
    new_tokens: float = Field(120, gt=0)
    """Tokens of a generation."""
    tokens_per_s: float | None = Field(None, gt=0)
    """Generated tokens a second of one GPU; none: as measured, else 4,000 for 7B and inversely with the parameters."""
    tokens_per_s_of_7b: float = Field(4000, gt=0)
    """The assumption behind the default."""
    gpus: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of GPUs to reckon."""
    efficiency_per_doubling: float = Field(0.95, gt=0, le=1)
    """What is left of twice the speed when the GPUs double."""
    start_s: float = Field(120, ge=0)
    """Time until an engine or a training is up, once."""
    rows_per_file: int = Field(128, ge=1)
    """Rows of a committed file (``engine.rows_per_batch``)."""
    training: TrainingNumbers = TrainingNumbers()
    cost: CostNumbers = CostNumbers()
    disk: DiskNumbers = DiskNumbers()
    limits: LimitNumbers = LimitNumbers()
