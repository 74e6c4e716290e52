// The one way to launch a kernel: on the given stream, checked, with opt-in shared memory and
// thread-block clusters. The host emulation (SIMT_HOST) runs the grid in place instead.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <map>
#include <mutex>
#include <utility>

#include "core/check.h"
#include "cuda/runtime.h"

namespace fastops::cuda {

struct Launch {
  const char* name;  // for error texts and emulator reports
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // dynamic; above 48 KB the kernel is opted in
  unsigned cluster = 1;     // blocks per cluster along x (sm_90)
  void* stream = nullptr;   // a cudaStream_t
};

struct DeviceInfo {
  int sm_count, major, minor;
  int shared_optin;  // most dynamic shared memory of one block, in bytes
  int l2_bytes;
};

// How many clusters of 1, 2, 4, 8 and 16 blocks run at a time.
using ClusterCounts = std::array<int, 5>;

#ifdef SIMT_HOST

inline DeviceInfo device_info() {
  const auto& device = simt::device();
  return {device.sm_count, device.major, device.minor, device.shared_per_block_optin,
          device.l2_bytes()};
}

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), const Launch& config, const Args&... args) {
  simt::launch(config.name, kernel, config.grid, config.block, config.shared_bytes, config.cluster,
               args...);
}

class ActiveClusters {
 public:
  template <typename... Params>
  ClusterCounts ask(void (*)(Params...), int, int) {
    ClusterCounts counts;
    for (int i = 0; i < int(counts.size()); ++i)
      counts[i] = std::max(1, device_info().sm_count >> i);
    return counts;
  }
};

#else

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // not sticky: the next launch must not report this one's error
  fail("fastops: ", what, ": ", cudaGetErrorString(status));
}

inline constexpr int kDevices = 64;

// The current device. Asked once per device and process: the answers do not change.
inline DeviceInfo device_info() {
  static std::atomic<int> known[kDevices];
  static DeviceInfo infos[kDevices];
  static std::mutex mutex;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  if (device >= kDevices) fail("fastops: device ", device, " is beyond the first ", kDevices);
  if (known[device].load(std::memory_order_acquire)) return infos[device];
  const std::lock_guard<std::mutex> lock(mutex);
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
    return value;
  };
  infos[device] = {ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrComputeCapabilityMajor),
                   ask(cudaDevAttrComputeCapabilityMinor),
                   ask(cudaDevAttrMaxSharedMemoryPerBlockOptin), ask(cudaDevAttrL2CacheSize)};
  known[device].store(1, std::memory_order_release);
  return infos[device];
}

inline constexpr size_t kDefaultSharedBytes = 48 * 1024;
inline constexpr unsigned kPortableCluster = 8;

// Lets a kernel be launched with so much dynamic shared memory. The limit is the kernel's, on one
// device, so it is only ever raised: another thread may be about to launch with more.
inline void allow_shared(const void* entry, size_t bytes, const char* name) {
  if (bytes <= kDefaultSharedBytes) return;
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed[{entry, device}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), name);
  most = bytes;
}

// How many clusters of a kernel the current device runs at a time. The SMs of a cluster are in one
// GPC, and GPCs differ in how many they have: there may be fewer than SMs / blocks, and none of a
// size on a part of a GPU (MIG). Asked once per device; nothing waits for it. One of these for each
// kernel and launch.
class ActiveClusters {
 public:
  template <typename... Params>
  ClusterCounts ask(void (*kernel)(Params...), int threads, int shared_bytes) {
    const DeviceInfo info = device_info();  // refuses devices beyond these
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    const std::lock_guard<std::mutex> lock(mutex_);
    ClusterCounts& counts = known_[device];
    if (counts[0] != 0) return counts;
    const void* entry = reinterpret_cast<const void*>(kernel);
    allow_shared(entry, size_t(shared_bytes), "shared memory of a cluster");
    check(cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          "size of a cluster");
    for (int i = 1; i < int(counts.size()); ++i)
      counts[i] = active(entry, 1 << i, threads, shared_bytes);
    counts[0] = info.sm_count;
    return counts;
  }

 private:
  static int active(const void* entry, int size, int threads, int shared_bytes) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {unsigned(size), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(size));
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = size_t(shared_bytes);
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, entry, &config) == cudaSuccess) return clusters;
    cudaGetLastError();  // the next launch must not report it
    return 0;
  }

  std::mutex mutex_;
  ClusterCounts known_[kDevices] = {};
};

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), const Launch& config, const Args&... args) {
  const void* entry = reinterpret_cast<const void*>(kernel);
  allow_shared(entry, config.shared_bytes, config.name);
  if (config.cluster > kPortableCluster)
    check(cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          config.name);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = config.cluster;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.shared_bytes;
  launch_config.stream = static_cast<cudaStream_t>(config.stream);
  launch_config.attrs = &attribute;
  launch_config.numAttrs = config.cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&launch_config, kernel, args...), config.name);
}

#endif

}  // namespace fastops::cuda
