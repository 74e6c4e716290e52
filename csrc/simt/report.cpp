#include "simt/report.h"

#include <dlfcn.h>
#include <stdio.h>

#include <algorithm>
#include <map>

namespace simt {
namespace {

struct Image {
  uintptr_t base = 0;
  std::string path;
};

const Image& image() {
  static const Image instance = [] {
    Image i;
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&code_offset), &info)) {
      i.base = reinterpret_cast<uintptr_t>(info.dli_fbase);
      i.path = info.dli_fname;
    }
    return i;
  }();
  return instance;
}

std::string quoted(const std::string& path) {
  std::string text = "'";
  for (char c : path) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

std::string look_up(uint32_t code) {
  char command[4096];
  snprintf(command, sizeof(command), "addr2line -Cfipe %s 0x%x 2>/dev/null",
           quoted(image().path).c_str(), code - 1);
  std::string text;
  if (FILE* pipe = popen(command, "r")) {
    char buffer[1024];
    while (size_t n = fread(buffer, 1, sizeof(buffer), pipe)) text.append(buffer, n);
    pclose(pipe);
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  if (text.empty() || text.find("??:") != std::string::npos) {
    snprintf(command, sizeof(command), "code offset 0x%x", code);
    return command;
  }
  replace_all(text, SIMT_SOURCE_ROOT, "");
  replace_all(text, "\n (inlined by)", "\n      inlined at");
  return text;
}

}  // namespace

const char* name(Check check) {
  switch (check) {
    case Check::out_of_bounds: return "out-of-bounds";
    case Check::misaligned: return "misaligned";
    case Check::uninitialised: return "uninitialised-read";
    case Check::write_to_const: return "write-to-const";
    case Check::race: return "race";
    case Check::block_race: return "block-race";
    case Check::unwritten: return "unwritten";
    case Check::async_pending: return "async-pending";
    case Check::foreign_stack: return "foreign-stack";
    case Check::divergent_collective: return "divergent-collective";
    case Check::divergent_barrier: return "divergent-barrier";
    case Check::shuffle_source: return "shuffle-source";
    case Check::deadlock: return "deadlock";
    case Check::cluster_protocol: return "cluster-protocol";
    case Check::barrier_protocol: return "barrier-protocol";
    case Check::sparse_metadata: return "sparse-metadata";
    case Check::mbarrier_protocol: return "mbarrier-protocol";
    case Check::proxy_fence: return "proxy-fence";
    case Check::bulk_copy: return "bulk-copy";
    case Check::wgmma_protocol: return "wgmma-protocol";
    case Check::setmaxnreg: return "setmaxnreg";
    case Check::index_bounds: return "index-bounds";
  }
  return "";
}

std::string module_path() { return image().path; }

uint32_t code_offset(const void* return_address) {
  static const uintptr_t base = image().base;
  return uint32_t(reinterpret_cast<uintptr_t>(return_address) - base);
}

std::string source_of(uint32_t code) {
  static std::map<uint32_t, std::string> known;
  const auto [entry, fresh] = known.try_emplace(code);
  if (fresh) entry->second = look_up(code);
  return entry->second;
}

std::string at_line(uint32_t code) { return "\n    at " + source_of(code); }

bool Findings::is_new(Check check, uint32_t code, uint32_t other) {
  if (texts_.size() >= kMost) return false;
  const bool seen = std::any_of(keys_.begin(), keys_.end(), [&](const Key& k) {
    return k.check == check && k.code == code && k.other == other;
  });
  if (!seen) keys_.push_back({check, code, other});
  return !seen;
}

void Findings::add(std::string text) { texts_.push_back(std::move(text)); }

std::string Findings::take(const std::string& kernel) {
  std::string all = "simt: kernel " + kernel;
  for (const std::string& text : texts_) all += "\n" + text;
  texts_.clear();
  keys_.clear();
  return all;
}

}  // namespace simt
