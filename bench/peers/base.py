"""What an adapter of an engine has to do: its virtual environment, its own form of a checkpoint, loading, generating.

Decides where these lie and how an environment is made. Knows no engine and no workload. Standard library only.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and the pip installs that fill it, in order."""

    name: str
    installs: tuple[tuple[str, ...], ...]
    removed: tuple[str, ...] = ()  # packages that pip brings along and that keep the engine from starting
    variables: tuple[tuple[str, str], ...] = ()  # while installing


@dataclass(frozen=True)
class Task:
    """What an engine shall be made ready for."""

    checkpoint: Path
    converted: Path
    threads: int
    max_model_len: int
    max_num_seqs: int
    kv_bytes: int  # enough for all requests at their full length, nothing shared
    shared_len: int  # tokens that all prompts begin with, for engines that must be told

    @staticmethod
    def of(values: dict[str, Any]) -> Task:
        return Task(**{**values, "checkpoint": Path(values["checkpoint"]), "converted": Path(values["converted"])})


class Peer:
    """One engine. The upper half runs in the process that compares, the lower one in the engine's own."""

    distribution = ""  # as pip names it
    importing = ""  # the statement whose time is the time to import
    note = ""  # how it is run, for the table
    environments: tuple[Environment, ...] = ()  # the first one runs it
    converts = False

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder

    def python(self) -> Path:
        return self.folder / self.environments[0].name / "bin" / "python"

    def missing(self) -> str | None:
        """Why it cannot run, if it cannot."""
        for environment in self.environments:
            if not (self.folder / environment.name / "installed").exists():
                return f"not installed (no {self.folder / environment.name}/installed); --setup does it"
        return None

    def setup(self) -> None:
        for environment in self.environments:
            make_environment(self.folder, environment)

    def variables(self, threads: int) -> dict[str, str]:
        """Of the process it runs in."""
        return {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }

    def convert(self, checkpoint: Path, out: Path) -> None:
        """Writes the engine's own form of a checkpoint."""
        raise NotImplementedError

    def load(self, task: Task) -> None:
        raise NotImplementedError

    def generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        """Greedily, not ending at end-of-sequence tokens: `num_new` ids of each prompt."""
        raise NotImplementedError

    def version(self) -> str:
        return importlib.metadata.version(self.distribution)


def make_environment(folder: Path, environment: Environment) -> None:
    """Nothing is done where it is complete; a log lies beside it."""
    home = folder / environment.name
    if (home / "installed").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{environment.name}.log"
    with log.open("w") as output:

        def run(*command: object) -> None:
            variables = {**os.environ, **dict(environment.variables)}
            done = subprocess.run(list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, env=variables)
            if done.returncode:
                raise OSError(f"{' '.join(map(str, command))} failed; see {log}")

        if not (home / "bin" / "python").exists():
            run(sys.executable, "-m", "venv", home)
        pip = (home / "bin" / "python", "-m", "pip")
        for packages in environment.installs:
            run(*pip, "install", *packages)
        if environment.removed:
            run(*pip, "uninstall", "-y", *environment.removed)
    (home / "installed").touch()


def cpus(threads: int) -> Sequence[int]:
    """Those that the threads of an engine may be bound to."""
    return sorted(os.sched_getaffinity(0))[:threads]
