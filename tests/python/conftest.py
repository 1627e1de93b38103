"""What the Python tests share: the real data (where it is), tiny checkpoints, and engines built once a session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_llama, write_tokenizer
from pooling_models import as_sentence_transformer, write_bert

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# As users have it, but not among the user's files; processes that tests start have it too.
_packed_weights = tempfile.TemporaryDirectory(prefix="quire-tests-")
os.environ["QUIRE_WEIGHT_CACHE"] = _packed_weights.name


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real checkpoints, templates and texts: $QUIRE_TEST_DATA, else shared/data beside the repository."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("QUIRE_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; set QUIRE_TEST_DATA")
    return folder


@pytest.fixture
def simt_plugin(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin of the emulated GPU, where device="simt" finds it: $QUIRE_PLUGIN_PATH, else beside _quire_testing."""
    folder = os.environ.get("QUIRE_PLUGIN_PATH")
    if not folder:
        folder = str(Path(pytest.importorskip("_quire_testing").__file__).parent)
    plugin = Path(folder) / "libquire_simt.so"
    if not plugin.is_file():
        pytest.skip(f"no {plugin}; build with QUIRE_BUILD_TESTS=ON and set QUIRE_PLUGIN_PATH=<build>/testing")
    monkeypatch.setenv("QUIRE_PLUGIN_PATH", folder)
    return plugin


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def llm(tiny_model: Path) -> Iterator[object]:
    """One engine for all tests that do not change it."""
    from quire import LLM

    with LLM(str(tiny_model), seed=0, num_gpu_blocks_override=512) as engine:
        yield engine


@pytest.fixture(scope="session")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A model whose logits are all about zero: what it writes is what logit_bias and the penalties say."""
    import numpy as np
    from quire import LLM
    from safetensors.numpy import load_file, save_file

    folder = write_llama(tmp_path_factory.mktemp("flat-llama"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= np.float32(1e-3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with LLM(str(folder), seed=0, num_gpu_blocks_override=64) as engine:
        yield engine


@pytest.fixture(scope="session")
def pooling_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pooling")
    return {
        "embed": as_sentence_transformer(write_bert(root / "embed")),
        "plain": write_bert(root / "plain"),
        "score": write_bert(root / "score", 1),
        "classify": write_bert(root / "classify", 3),
        "decoder": write_llama(root / "decoder"),
    }


@pytest.fixture(scope="session")
def embedder(pooling_folders: dict[str, Path]) -> Iterator[object]:
    from quire import LLM

    with LLM(str(pooling_folders["embed"])) as llm:
        yield llm


@pytest.fixture(scope="session")
def scorer(pooling_folders: dict[str, Path]) -> Iterator[object]:
    from quire import LLM

    with LLM(str(pooling_folders["score"])) as llm:
        yield llm
