"""llama.cpp as it is built for machines without AVX-512 and AMX, to be compared with quire on QUIRE_CPU_ISA=avx2."""

from __future__ import annotations

from dataclasses import replace

from . import llama_cpp

_SWITCHES = "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON"


class Adapter(llama_cpp.Adapter):
    note = "as llama.cpp, built with GGML_NATIVE off for AVX2, FMA and F16C"
    environments = tuple(
        replace(
            environment,
            name="llama.cpp-avx2",
            variables=tuple(
                (name, value.replace("-DGGML_NATIVE=ON", _SWITCHES)) for name, value in environment.variables
            ),
        )
        for environment in llama_cpp.Adapter.environments
    )
