from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

class LogprobBuffer:
    width: int
    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    sampled_ranks: npt.NDArray[np.int32]

class Completion:
    index: int
    token_ids: list[int]
    cumulative_logprob: float
    finish_reason: str | None
    stop_token_id: int
    stop_string_index: int
    is_complete: bool
    logprobs: LogprobBuffer | None
    hidden_states: npt.NDArray[np.float32] | None
    logits: npt.NDArray[np.float32] | None

class Output:
    request_id: int
    completions: list[Completion]
    prompt_logprobs: LogprobBuffer | None
    prompt_hidden_states: npt.NDArray[np.float32] | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    spec_token_acceptance_counts: list[int]
    arrival: float
    first_scheduled: float
    first_token: float
    last_token: float
    finished: float
    error: str

class Delta:
    request_id: int
    index: int
    token_ids: list[int]
    logprobs: LogprobBuffer | None
    cumulative_logprob: float
    prompt_logprobs: LogprobBuffer | None
    finish_reason: str | None

class Engine:
    def __init__(
        self,
        model_dir: str,
        options: dict[str, Any],
        weights: list[tuple[str, npt.NDArray[Any], str]] | None = None,
    ) -> None: ...
    def submit(
        self,
        prompt_token_ids: Sequence[int] | npt.NDArray[Any],
        params: dict[str, Any],
        stream: bool = False,
        priority: int = 0,
    ) -> int: ...
    def submit_many(
        self, prompts: list[Any], params: list[dict[str, Any]] | dict[str, Any], priorities: Sequence[int] = ()
    ) -> list[int]: ...
    def submit_beam_search(self, prompts: list[Any], params: dict[str, Any]) -> list[int]: ...
    def run(self, request_ids: Sequence[int], max_ms: int = 50) -> tuple[list[Output], list[Delta]]: ...
    def cancel(self, request_id: int) -> bool: ...
    def set_vocabulary(self, token_bytes: list[bytes]) -> None: ...
    def reset_prefix_cache(self) -> bool: ...
    def start_recording(self) -> None: ...
    def stop_recording(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, float]: ...
    def info(self) -> dict[str, Any]: ...
    def close(self) -> None: ...

class PooledOutput:
    request_id: int
    data: npt.NDArray[np.float32]
    num_prompt_tokens: int
    is_cancelled: bool
    arrival: float
    first_scheduled: float
    finished: float

class PoolingEngine:
    def __init__(
        self,
        model_dir: str,
        options: dict[str, Any],
        pooler: dict[str, Any],
        weights: list[tuple[str, npt.NDArray[Any], str]] | None = None,
    ) -> None: ...
    def open_call(self) -> int: ...
    def submit_many(
        self,
        call: int,
        prompts: list[Any],
        token_types: list[Any] | None,
        params: list[dict[str, Any]] | dict[str, Any],
    ) -> list[int]: ...
    def run(self, call: int, max_ms: int = 50) -> list[PooledOutput]: ...
    def close_call(self, call: int) -> None: ...
    def stats(self) -> dict[str, float]: ...
    def info(self) -> dict[str, Any]: ...
    def close(self) -> None: ...

def plan_model(model_dir: str, options: dict[str, Any]) -> dict[str, Any]: ...
def plan_pooling_model(model_dir: str, options: dict[str, Any], pooler: dict[str, Any]) -> dict[str, Any]: ...
def validate_sampling_params(params: dict[str, Any]) -> None: ...
def sampling_param_fields() -> list[tuple[str, str]]: ...
def beam_search_param_fields() -> list[tuple[str, str]]: ...
def engine_option_fields() -> list[tuple[str, str]]: ...
def set_library_folders(folders: list[str]) -> None: ...
def find_plugin(backend: str) -> str: ...
def describe_plugin(backend: str) -> dict[str, Any]: ...
def measure_machine(cpu_isa: str = "", num_threads: int = 0, read_bytes: int = ...) -> dict[str, Any]: ...
def supported_architectures() -> list[str]: ...
def supported_pooling_architectures() -> list[str]: ...
def pooler_option_fields() -> list[tuple[str, str]]: ...
def pooling_param_fields() -> list[tuple[str, str]]: ...
def version() -> str: ...
def set_log_callback(callback: Callable[[int, str], None] | None) -> None: ...
