// Runs a check in every order of threads that the emulation knows.
#pragma once

#include <gtest/gtest.h>

#include "cuda/simt/tc.h"

namespace quire::simt {

template <typename Check>
void in_every_order(Check check) {
  const struct {
    const char* name;
    Order order;
    uint64_t seed;
  } orders[] = {{"forward", Order::forward, 1},
                {"reverse", Order::reverse, 1},
                {"random 1", Order::random, 1},
                {"random 2", Order::random, 2}};
  for (const auto& o : orders) {
    SCOPED_TRACE(o.name);
    set_order(o.order, o.seed);
    check();
  }
  set_order(Order::forward);
}

// The message of the error that the call throws; "" if it throws none.
template <typename Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace quire::simt
