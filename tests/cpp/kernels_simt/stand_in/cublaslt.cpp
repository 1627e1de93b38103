// A shared library with the names of cuBLASLt's functions and nothing behind them, for the search of a library.
extern "C" {
decltype(sizeof(0)) cublasLtGetVersion() { return 7; }
const char* cublasLtGetStatusName(int) { return "stand-in"; }
#define QUIRE_STAND_IN(name) \
  int name() { return 1; }
QUIRE_STAND_IN(cublasLtCreate)
QUIRE_STAND_IN(cublasLtMatmulDescCreate)
QUIRE_STAND_IN(cublasLtMatmulDescSetAttribute)
QUIRE_STAND_IN(cublasLtMatrixLayoutCreate)
QUIRE_STAND_IN(cublasLtMatrixLayoutSetAttribute)
QUIRE_STAND_IN(cublasLtMatmulPreferenceCreate)
QUIRE_STAND_IN(cublasLtMatmulPreferenceDestroy)
QUIRE_STAND_IN(cublasLtMatmulPreferenceSetAttribute)
QUIRE_STAND_IN(cublasLtMatmul)
#if !defined(QUIRE_LACKS_ONE)
QUIRE_STAND_IN(cublasLtMatmulAlgoGetHeuristic)
#endif
}
