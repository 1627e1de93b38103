"""start_profile, stop_profile, get_metrics and startup_report of the LLM class.

Decides their signatures. The trace is written by trace.py; what figures there are is in metrics.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quire import metrics, trace

if TYPE_CHECKING:
    from quire.engine_view import EngineView


class ObservationMethods:
    """Mixed into LLM."""

    if TYPE_CHECKING:
        _engine: Any
        _trace_settings: trace.TraceSettings
        _trace_prefix: str | None
        llm_engine: EngineView
        startup_report: metrics.StartupReport

        def _check_open(self) -> None: ...

    def start_profile(
        self,
        profile_prefix: str | None = None,
        *,
        delay_iterations: int | None = None,
        max_iterations: int | None = None,
        profiler_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Records what every step does from now on, until stop_profile() writes it down.

        On a CPU it costs about 0.1 us a kernel. On a GPU steps are launched kernel by kernel meanwhile, with an event
        in front of and behind each: results are the same bits, and no step is replayed from a graph.

        RuntimeError: the LLM was built without a folder for traces. ValueError: a recording is under way.
        NotImplementedError: one of the last three arguments is given.
        """
        self._check_open()
        given = {
            "delay_iterations": delay_iterations,
            "max_iterations": max_iterations,
            "profiler_kwargs": profiler_kwargs,
        }
        if refused := [name for name, value in given.items() if value]:
            raise NotImplementedError(
                f"start_profile({', '.join(refused)}=...) is not supported; call start_profile and stop_profile around "
                "the steps to record."
            )
        if self._trace_settings.folder is None:
            raise RuntimeError(trace.NOT_ENABLED)
        if profile_prefix is not None and Path(profile_prefix).name != profile_prefix:
            raise ValueError(f"profile_prefix is the beginning of a file's name, got {profile_prefix!r}")
        self._engine.start_recording()
        self._trace_prefix = profile_prefix

    def stop_profile(self) -> Path:
        """Writes a Chrome trace of the steps since start_profile() and returns its path. Perfetto opens it.

        Of several ranks the first is shown. If the device broke meanwhile, the trace has what was over before.

        RuntimeError: the LLM was built without a folder for traces. ValueError: nothing is recorded.
        """
        self._check_open()
        if self._trace_settings.folder is None:
            raise RuntimeError(trace.NOT_ENABLED)
        recording = self._engine.stop_recording()
        return trace.write_trace(recording, self._trace_settings, self._trace_prefix)

    def get_metrics(self) -> list[metrics.Metric]:
        """Figures of the engine since it was built, under vLLM's names: the classes of quire.metrics.

        They are there whatever disable_log_stats says. Of a pooling model, those that are not of generated tokens.
        """
        self._check_open()
        return metrics.metrics_of(self._engine.metrics(), self.llm_engine.model_config.model)
