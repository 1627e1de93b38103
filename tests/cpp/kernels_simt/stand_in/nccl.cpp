// A shared library with the names of NCCL's functions, which do nothing and say who they are, for the search of a
// library.
extern "C" {
int ncclGetVersion(int* version) {
  *version = 22703;
  return 0;
}
const char* ncclGetErrorString(int) { return "stand-in"; }
const char* ncclGetLastError(void*) { return "stand-in"; }
#define QUIRE_STAND_IN(name, number) \
  int name() { return number; }
QUIRE_STAND_IN(ncclCommInitAll, 99)
QUIRE_STAND_IN(ncclGroupStart, 100)
QUIRE_STAND_IN(ncclGroupEnd, 101)
QUIRE_STAND_IN(ncclCommDestroy, 102)
QUIRE_STAND_IN(ncclCommAbort, 103)
QUIRE_STAND_IN(ncclAllReduce, 104)
QUIRE_STAND_IN(ncclSend, 105)
QUIRE_STAND_IN(ncclBroadcast, 106)
QUIRE_STAND_IN(ncclCommGetAsyncError, 108)
#if !defined(QUIRE_LACKS_ONE)
QUIRE_STAND_IN(ncclRecv, 107)
#endif
}
