"""llama.cpp: libllama's batch interface through llama-cpp-python, all sequences in one context.

Built from source for this very CPU. A shared prefix is computed once and its cells are given to every sequence
(llama_memory_seq_cp), which needs a unified cache. How a checkpoint becomes a GGUF file is in gguf_file.py.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from .base import Environment, Peer, Task

BATCH = 2048


class Adapter(Peer):
    distribution = "llama-cpp-python"
    importing = "import llama_cpp"
    note = "libllama's batch interface, bf16 GGUF, built with GGML_NATIVE; in d the prefix is shared by hand"
    environments = (
        Environment(
            "llama.cpp",
            (
                ("--no-binary", "llama-cpp-python", "--no-cache-dir", "llama-cpp-python==0.3.36"),
                ("gguf", "numpy"),
            ),
            variables=(
                # Of its libraries the one that runs models; LLAVA is the one for images.
                ("CMAKE_ARGS", "-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_COMMON=OFF"),
                ("FORCE_CMAKE", "1"),
            ),
        ),
    )
    converts = True

    def convert(self, checkpoint: Path, out: Path) -> None:
        from .gguf_file import write_gguf

        write_gguf(checkpoint, out)

    def load(self, task: Task) -> None:
        import llama_cpp

        self._lib, self._task = llama_cpp, task
        self._log = llama_cpp.llama_log_callback(_only_errors)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(task.converted).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise OSError(f"llama.cpp could not load {task.converted}")
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max = task.max_num_seqs
        params.kv_unified = task.shared_len > 0
        own = task.max_model_len - task.shared_len
        # In a unified cache the prefix is there once; else every sequence has a part of the same size.
        params.n_ctx = task.shared_len + own * task.max_num_seqs
        params.n_batch, params.n_ubatch = BATCH, 512
        params.n_threads = params.n_threads_batch = task.threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise OSError("llama.cpp could not make a context")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, task.max_num_seqs)

    def generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        lib = self._lib
        lib.llama_memory_clear(self._memory, True)
        begin = self._task.shared_len if len(prompts) > 1 else 0
        if begin:
            self._decode([(token, i, 0, False) for i, token in enumerate(prompts[0][:begin])])
            for sequence in range(1, len(prompts)):
                lib.llama_memory_seq_cp(self._memory, 0, sequence, 0, -1)
        entries = [
            (token, i, sequence, i == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for i, token in enumerate(prompt)
            if i >= begin
        ]
        made = [[token] for token in self._decode(entries)]  # logits are wanted once a sequence, in their order
        for step in range(num_new - 1):
            entries = [(ids[-1], len(prompts[i]) + step, i, True) for i, ids in enumerate(made)]
            for ids, token in zip(made, self._decode(entries)):
                ids.append(token)
        return made

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> list[int]:
        """Of (token, position, sequence, logits wanted): the likeliest next token wherever logits are wanted."""
        import numpy

        likeliest: list[int] = []
        batch = self._batch
        for begin in range(0, len(entries), BATCH):
            part = entries[begin : begin + BATCH]
            batch.n_tokens = len(part)
            for i, (token, position, sequence, wanted) in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
                batch.seq_id[i][0] = sequence
            status = self._lib.llama_decode(self._context, batch)
            if status:
                raise OSError(f"llama_decode returned {status}")
            for i, entry in enumerate(part):
                if entry[3]:
                    logits = self._lib.llama_get_logits_ith(self._context, i)
                    likeliest.append(int(numpy.ctypeslib.as_array(logits, shape=(self._vocab_size,)).argmax()))
        return likeliest


def _only_errors(level: int, text: bytes, _: object) -> None:
    import sys

    if level == 4:
        sys.stderr.write(text.decode(errors="replace"))
