// A library that is no plugin, for the loader to refuse.
extern "C" __attribute__((visibility("default"))) int something_else() { return 1; }
