// What tests set and ask, through ctypes.
#include <string>

#include "simt/counters.h"
#include "simt/launch.h"
#include "simt/machine.h"

#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))

SIMT_EXPORT void simt_configure(int order, int async, unsigned long long seed) {
  simt::config() = {simt::Order(order), simt::Async(async), seed};
}

SIMT_EXPORT void simt_set_device(int sm_count, int major, int minor) {
  simt::device() = {sm_count, major, minor, simt::shared_optin(major)};
}

// Names of the kernels launched since the last call, one per line, in order.
SIMT_EXPORT const char* simt_take_launches() {
  static std::string names;
  names.clear();
  for (const std::string& name : simt::machine().launched) names += name + "\n";
  simt::machine().launched.clear();
  return names.c_str();
}

// From now on launches are counted, or not.
SIMT_EXPORT void simt_count(int on) { simt::counters().on = on != 0; }

// JSON: a list of the launches counted since the last call, each with its source lines.
SIMT_EXPORT const char* simt_take_counts() {
  static std::string text;
  text = simt::counters().take();
  return text.c_str();
}
