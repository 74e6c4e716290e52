// The tensors of a launch, shared addresses, and how reports name memory.
#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "simt/memory.h"

namespace simt {

// ---- Shared addresses ----------------------------------------------------------------------

unsigned Memory::shared_address(const void* p, const void* return_address) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const size_t in_dynamic = address - reinterpret_cast<uintptr_t>(dynamic_);
  if (in_dynamic / kSlotBytes == self->block->rank) return unsigned(in_dynamic % kSlotBytes);
  const size_t in_static = address - reinterpret_cast<uintptr_t>(static_live_);
  if (in_static < static_bytes_) return kDynamicBytes + unsigned(in_static);
  machine().fail(Check::out_of_bounds,
                 "takes the shared address of something that is not in its "
                 "block's shared memory" +
                     at_line(code_offset(return_address)));
}

unsigned Memory::absolute_shared(unsigned address, uint32_t code) {
  const unsigned window = address >> kRankShift;
  const unsigned rank = window == 0 ? self->block->rank : window - 1;
  Machine& m = machine();
  if (rank >= m.cluster_blocks)
    m.fail(Check::out_of_bounds,
           "uses a shared address of no block of its cluster" + at_line(code));
  return (address & ((1u << kRankShift) - 1)) | (rank + 1) << kRankShift;
}

unsigned char* Memory::shared_bytes(unsigned absolute) {
  const unsigned rank = rank_of(absolute), offset = absolute & ((1u << kRankShift) - 1);
  if (offset < kDynamicBytes) return dynamic_shared(rank) + offset;
  unsigned char* base =
      rank == self->block->rank ? static_live_ : &static_images_[rank * image_stride()];
  return base + (offset - kDynamicBytes);
}

void* Memory::at_shared(unsigned address, uint32_t code) {
  const unsigned absolute = absolute_shared(address, code);
  const unsigned rank = rank_of(absolute);
  if (rank != self->block->rank) machine().visit(machine().blocks[rank], code);
  return shared_bytes(absolute);
}

unsigned Memory::map_shared(unsigned address, unsigned rank, const void* return_address) {
  if (rank >= machine().cluster_blocks)
    machine().fail(Check::cluster_protocol, "maps a shared address to block " +
                                                std::to_string(rank) + " of a cluster of " +
                                                std::to_string(machine().cluster_blocks) +
                                                at_line(code_offset(return_address)));
  return (address & ((1u << kRankShift) - 1)) | (rank + 1) << kRankShift;
}

// ---- Tensors -------------------------------------------------------------------------------

namespace {

// Calls visit(offset) for each distinct element.
template <typename Visit>
void for_elements(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                  const Visit& visit) {
  if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) return;
  std::vector<int64_t> index(sizes.size(), 0);
  for (;;) {
    int64_t offset = 0;
    for (size_t d = 0; d < index.size(); ++d) offset += index[d] * strides[d];
    visit(size_t(offset));
    size_t d = index.size();
    while (d > 0 && (strides[d - 1] == 0 || ++index[d - 1] == sizes[d - 1])) index[--d] = 0;
    if (d == 0) return;
  }
}

}  // namespace

// A bit for each element of longer spans (rows gigabytes apart) would take too long to set.
constexpr size_t kMostBits = size_t{1} << 26;

int64_t index_of(const Region& region, size_t element, std::vector<int64_t>& index) {
  index.assign(region.sizes.size(), 0);
  int64_t rest = int64_t(element);
  for (size_t d : region.by_stride) {
    if (region.strides[d] == 0) continue;
    index[d] = std::min(rest / region.strides[d], region.sizes[d] - 1);
    rest -= index[d] * region.strides[d];
  }
  return rest;
}

bool Memory::has(const Region& region, size_t element) {
  if (!region.exists.empty()) return region.exists[element];
  if (!region.nested) return true;
  std::vector<int64_t> index;
  return index_of(region, element, index) == 0;
}

void Memory::add(const Tensor& tensor) {
  auto region = std::make_unique<Region>();
  region->name = tensor.name;
  region->begin = reinterpret_cast<uintptr_t>(tensor.data);
  region->end = region->begin + tensor.bytes;
  region->access = tensor.access;
  region->must_be_written = tensor.must_be_written;
  region->element_bytes = tensor.element_bytes;
  region->sizes = tensor.sizes;
  region->strides = tensor.strides;
  const size_t span = tensor.bytes / tensor.element_bytes;
  size_t distinct = 1;
  for (size_t d = 0; d < tensor.sizes.size(); ++d)
    if (tensor.strides[d] != 0) distinct *= size_t(tensor.sizes[d]);
  region->by_stride.resize(tensor.sizes.size());
  for (size_t d = 0; d < region->by_stride.size(); ++d) region->by_stride[d] = d;
  std::stable_sort(region->by_stride.begin(), region->by_stride.end(),
                   [&](size_t a, size_t b) { return tensor.strides[a] > tensor.strides[b]; });
  if (!tensor.sizes.empty() && distinct < span && span > kMostBits) {
    region->nested = true;
  } else if (!tensor.sizes.empty() && distinct < span) {
    region->exists.assign(span, false);
    for_elements(tensor.sizes, tensor.strides, [&](size_t e) { region->exists[e] = true; });
  }
  for (size_t i = 0; i < regions_.size();) {
    Region& other = *regions_[i];
    if (other.begin >= region->end || region->begin >= other.end) {
      ++i;
      continue;
    }
    const bool same = other.begin == region->begin && other.end == region->end &&
                      other.element_bytes == region->element_bytes;
    if (same) {
      for (size_t e = 0; e < region->exists.size() && !other.exists.empty(); ++e)
        region->exists[e] = region->exists[e] || other.exists[e];
      if (other.exists.empty()) region->exists.clear();
      region->nested = region->nested && other.nested;
    } else {
      region->exists.clear();
      region->nested = false;
      region->sizes.clear();
      region->element_bytes = std::min(region->element_bytes, other.element_bytes);
    }
    region->name = other.name + "/" + region->name;
    region->begin = std::min(region->begin, other.begin);
    region->end = std::max(region->end, other.end);
    region->access = Access(uint8_t(region->access) | uint8_t(other.access));
    region->must_be_written = same && (region->must_be_written || other.must_be_written);
    regions_.erase(regions_.begin() + ptrdiff_t(i));
  }
  regions_.push_back(std::move(region));
  last_ = nullptr;
}

void Memory::require_written() const {
  if (!kEveryAccessSeen) return;
  for (const auto& region : regions_) {
    if (!region->must_be_written) continue;
    const auto require = [&](size_t e) {
      if (region->cells.data() && region->cells.data()[e].write.group != 0) return;
      throw std::runtime_error("simt: kernel " + std::string(machine().grid.name) + "\n" +
                               name(Check::unwritten) + ": no launch has written " +
                               element_name(*region, e));
    };
    if (region->nested) {
      for_elements(region->sizes, region->strides, require);
      continue;
    }
    const size_t count = (region->end - region->begin) / region->element_bytes;
    for (size_t e = 0; e < count; ++e)
      if (region->exists.empty() || region->exists[e]) require(e);
  }
}

// "x[3, 17]", by greedy division with the strides; "x + 401 elements" where that is ambiguous.
std::string Memory::element_name(const Region& region, size_t element) const {
  std::vector<int64_t> index;
  const int64_t rest = index_of(region, element, index);
  std::ostringstream text;
  if (rest != 0 || index.empty()) {
    text << region.name << " + " << element << " elements";
    return text.str();
  }
  text << region.name << "[";
  for (size_t d = 0; d < index.size(); ++d) {
    if (d) text << ", ";
    if (region.strides[d] == 0) text << ":";
    else text << index[d];
  }
  text << "] (element " << element << ")";
  return text.str();
}

std::string Memory::describe(const Place& place) const {
  if (place.region) return element_name(*place.region, place.offset);
  std::ostringstream text;
  const auto named = [&](const StaticVariable& v) {
    return place.offset - v.offset < v.bytes && !v.guard;
  };
  const auto variable = std::find_if(static_variables_.begin(), static_variables_.end(), named);
  if (place.is_static && variable != static_variables_.end())
    text << "shared " << variable->name << ", byte " << place.offset - variable->offset;
  else text << (place.is_static ? "static" : "dynamic") << " shared memory + " << place.offset;
  if (machine().cluster_blocks > 1) text << " of cluster rank " << place.rank;
  return text.str();
}

void Memory::report_conflict(const Stamp& earlier, const char* kind, const char* now,
                             const char* then, const Place& place, size_t bytes, uint32_t code,
                             bool other_block) {
  Machine& m = machine();
  // Data of an asynchronous copy, before or after it landed, that this thread has not waited for.
  const bool async = earlier.proxy != Proxy::generic;
  const Check check = async                         ? Check::async_pending
                      : other_block && place.region ? Check::block_race
                                                    : Check::race;
  if (!m.findings.is_new(check, code, earlier.code)) return;
  std::ostringstream text;
  text << name(check);
  if (!async) text << " (" << kind << ")";
  text << ": " << m.describe(*self) << " " << now << " " << describe(place) << " (an access of "
       << bytes << " bytes)" << at_line(code) << "\n  ";
  if (earlier.group == m.group) text << m.describe(m.owner(earlier.thread));
  else text << "a thread of " << m.describe_cluster(earlier.group);
  text << " " << then << " it"
       << (async ? ", and no wait for it orders the two" : ", and nothing orders the two")
       << at_line(earlier.code);
  m.note(text.str());
}

}  // namespace simt
