#include "simt/counters.h"

#include <algorithm>
#include <set>
#include <sstream>

namespace simt {
namespace {

constexpr uintptr_t kBanks = 32, kWord = 4, kSector = 32;

// Wavefronts of lanes that are served together: the most words that any bank has to give.
uint64_t most_per_bank(const std::set<uintptr_t>& words) {
  uint64_t per_bank[kBanks] = {};
  for (uintptr_t word : words) ++per_bank[word % kBanks];
  return *std::max_element(per_bank, per_bank + kBanks);
}

void add_words(std::set<uintptr_t>& words, uintptr_t p, size_t bytes) {
  for (uintptr_t word = p / kWord; word * kWord < p + bytes; ++word) words.insert(word);
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n') out += "\\n";
    else out += c;
  }
  return out + "\"";
}

void write(std::ostringstream& out, const Counts& c) {
  out << "\"requests\": " << c.requests << ", \"wavefronts\": " << c.wavefronts
      << ", \"ideal_wavefronts\": " << c.ideal_wavefronts << ", \"sectors\": " << c.sectors
      << ", \"ideal_sectors\": " << c.ideal_sectors << ", \"read_bytes\": " << c.read_bytes
      << ", \"written_bytes\": " << c.written_bytes;
}

}  // namespace

void Counts::add(const Counts& o) {
  requests += o.requests;
  wavefronts += o.wavefronts;
  ideal_wavefronts += o.ideal_wavefronts;
  sectors += o.sectors;
  ideal_sectors += o.ideal_sectors;
  read_bytes += o.read_bytes;
  written_bytes += o.written_bytes;
}

Counters& counters() {
  static Counters instance;
  return instance;
}

void Counters::begin_launch(const char* kernel, uint64_t blocks) {
  if (!on) return;
  open_.clear();
  executions_.clear();
  launches_.push_back({kernel, blocks, {}});
}

// A thread's nth execution of an instruction is taken to be its warp's nth.
void Counters::touch(const Thread& t, uintptr_t p, size_t bytes, bool shared, bool write,
                     uint32_t code) {
  const uint32_t execution = executions_[uint64_t(t.id) << 33 | uint64_t(code) << 1 | write]++;
  open_[{t.warp->number, code, execution, shared, write}].push_back(
      {int(t.lane), p, uint32_t(bytes)});
}

void Counters::matrix(unsigned char* const* rows, uint32_t code) {
  std::set<uintptr_t> words;
  for (int i = 0; i < 8; ++i) add_words(words, reinterpret_cast<uintptr_t>(rows[i]), 16);
  Counts one;
  one.requests = 1;
  one.wavefronts = most_per_bank(words);
  one.ideal_wavefronts = 1;
  launches_.back().lines[code].add(one);
}

void Counters::bulk(size_t bytes, bool write, uint32_t code) {
  Counts one;
  (write ? one.written_bytes : one.read_bytes) = bytes;
  one.sectors = one.ideal_sectors = (bytes + kSector - 1) / kSector;
  launches_.back().lines[code].add(one);
}

void Counters::end_cluster() {
  for (const auto& [key, lanes] : open_) {
    Counts one;
    one.requests = 1;
    if (key.shared) {
      // 128 bytes at a time: of wide accesses fewer lanes.
      const int together = std::clamp(128 / int(lanes[0].bytes), 8, 32);
      std::map<int, std::set<uintptr_t>> passes;
      for (const Lane& l : lanes) add_words(passes[l.lane / together], l.p, l.bytes);
      for (const auto& [pass, words] : passes) {
        one.wavefronts += most_per_bank(words);
        one.ideal_wavefronts += (words.size() + kBanks - 1) / kBanks;
      }
    } else {
      std::set<uintptr_t> sectors, bytes;
      for (const Lane& l : lanes) {
        for (uintptr_t b = l.p; b < l.p + l.bytes; ++b) bytes.insert(b);
        for (uintptr_t s = l.p / kSector; s * kSector < l.p + l.bytes; ++s) sectors.insert(s);
      }
      one.sectors = sectors.size();
      one.ideal_sectors = (bytes.size() + kSector - 1) / kSector;
      (key.write ? one.written_bytes : one.read_bytes) = bytes.size();
    }
    launches_.back().lines[key.code].add(one);
  }
  open_.clear();
  executions_.clear();
}

std::string Counters::take() {
  std::ostringstream out;
  out << "[";
  for (const Launch& launch : launches_) {
    if (&launch != &launches_.front()) out << ", ";
    Counts total;
    for (const auto& [code, counts] : launch.lines) total.add(counts);
    out << "{\"kernel\": " << quoted(launch.kernel) << ", \"blocks\": " << launch.blocks << ", ";
    write(out, total);
    out << ", \"lines\": [";
    bool first = true;
    for (const auto& [code, counts] : launch.lines) {
      out << (first ? "" : ", ") << "{\"at\": " << quoted(source_of(code)) << ", ";
      write(out, counts);
      out << "}";
      first = false;
    }
    out << "]}";
  }
  out << "]";
  launches_.clear();
  return out.str();
}

}  // namespace simt
