# libfastops_cuda: built where nvcc is found, or on demand. Needs no GPU and no CUDA torch.

# Kernel sources, also read by the host emulation (csrc/simt), so set before any return.
set(FASTOPS_CUDA_SOURCES csrc/softmax/cuda/dispatch.cu csrc/softmax/cuda/strided.cu
  csrc/softmax/cuda/relatives/maps.cu csrc/softmax/cuda/relatives/topk.cu
  csrc/merge/cuda/match.cu csrc/merge/cuda/plan.cu csrc/merge/cuda/rows.cu)
foreach(dtype f32 f64 f16 bf16)
  list(APPEND FASTOPS_CUDA_SOURCES csrc/softmax/cuda/forward_${dtype}.cu
                                   csrc/softmax/cuda/backward_${dtype}.cu)
endforeach()
list(APPEND FASTOPS_CUDA_SOURCES
  csrc/nm/cuda/compress.cu csrc/nm/cuda/dispatch.cu csrc/nm/cuda/pack.cu csrc/nm/cuda/dense_f32.cu
  csrc/nm/cuda/dense_f16.cu csrc/nm/cuda/dense_bf16.cu csrc/nm/cuda/sparse_f16.cu
  csrc/nm/cuda/sparse_bf16.cu)
list(APPEND FASTOPS_CUDA_SOURCES csrc/attention/cuda/dispatch.cu csrc/attention/cuda/order.cu)
foreach(dtype f32 f16 bf16)
  list(APPEND FASTOPS_CUDA_SOURCES csrc/attention/cuda/forward_${dtype}.cu
                                   csrc/attention/cuda/backward_${dtype}.cu)
endforeach()
# These use instructions of sm_90a.
set(FASTOPS_CUDA_SM90_SOURCES csrc/softmax/cuda/cluster.cu csrc/softmax/cuda/ring_f32.cu
    csrc/softmax/cuda/ring_f16.cu csrc/softmax/cuda/ring_bf16.cu csrc/nm/cuda/wgmma_f16.cu
    csrc/nm/cuda/wgmma_bf16.cu csrc/attention/cuda/forward_hopper_f16.cu
    csrc/attention/cuda/forward_hopper_bf16.cu csrc/attention/cuda/backward_hopper_f16.cu
    csrc/attention/cuda/backward_hopper_bf16.cu)
# Whether those are chosen where FASTOPS_SM90 is not set (csrc/cuda/hopper.h). ON needs a record from
# hardware under bench/results: tests/bench/test_bench_hopper.py.
set(FASTOPS_HOPPER_BY_DEFAULT OFF)
set(FASTOPS_HOPPER_DEFINITIONS
    FASTOPS_CUDA_SM90 FASTOPS_HOPPER_BY_DEFAULT=$<BOOL:${FASTOPS_HOPPER_BY_DEFAULT}>)
# One-instruction kernels that run on a GPU and on the host (docs/simt.md).
set(FASTOPS_CONFORMANCE_SOURCES tests/simt/conformance/list.cpp tests/simt/conformance/thread_probes.cu
    tests/simt/conformance/warp_probes.cu)
set(FASTOPS_CONFORMANCE_SM90_SOURCES tests/simt/conformance/hopper_probes.cu
    tests/simt/conformance/tma_probes.cu tests/simt/conformance/wgmma_probes.cu)

if(NOT FASTOPS_TORCH_ROOT OR FASTOPS_CUDA STREQUAL "off")
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(FASTOPS_CUDA STREQUAL "on")
    message(FATAL_ERROR "FASTOPS_CUDA=on, but there is no nvcc: put one on PATH, set CUDACXX, or "
                        "use `make CUDA=on ...`, which brings it from PyPI")
  endif()
  message(WARNING "fastops: no nvcc found, building for CPU only (FASTOPS_CUDA=on insists)")
  return()
endif()
# Architectures are given per file below.
set(CMAKE_CUDA_ARCHITECTURES OFF)
enable_language(CUDA)
# The dialect as a plain flag: CMake before 3.26 does not know nvcc's one for C++20.
set(CMAKE_CUDA_STANDARD_REQUIRED OFF)
set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} -std=c++20")
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")

# Kernels are many and alike: compressed, the library is a sixth of its size.
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} --compress-mode=size")
endif()
# What ptxas says of each kernel lands beside the library, for tests and for fastops.info.
find_package(Python REQUIRED COMPONENTS Interpreter)
set(FASTOPS_PTXAS_REPORT ${Python_EXECUTABLE} ${CMAKE_SOURCE_DIR}/cmake/ptxas_report.py)
# At its default level ptxas trades a few spilled bytes for occupancy. Level 0, and launch bounds
# that name the least number of blocks, keep it from that.
set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} -Xptxas=-v,--register-usage-level=0")
set(CMAKE_CUDA_COMPILER_LAUNCHER ${FASTOPS_PTXAS_REPORT} compile ${CMAKE_CUDA_COMPILER_LAUNCHER})

# Default: sm_80 code, which the PTX also carries to newer GPUs, and sm_90a code.
set(FASTOPS_CUDA_ARCHS "" CACHE STRING "CUDA architectures, as TORCH_CUDA_ARCH_LIST")
set(archs "${FASTOPS_CUDA_ARCHS}")
if(NOT archs)
  set(archs "8.0+PTX;9.0a")
endif()
string(REPLACE " " ";" archs "${archs}")
include(cmake/cuda_archs.cmake)
fastops_gencode("${archs}" FASTOPS_GENCODE FASTOPS_SM90_GENCODE)

# Object libraries: what runs everywhere, and what only sm_90a has.
add_library(fastops_cuda_kernels OBJECT ${FASTOPS_CUDA_SOURCES})
target_compile_options(fastops_cuda_kernels PRIVATE ${FASTOPS_GENCODE})
set(FASTOPS_CUDA_OBJECTS $<TARGET_OBJECTS:fastops_cuda_kernels>)
if(FASTOPS_SM90_GENCODE)
  add_library(fastops_cuda_sm90 OBJECT ${FASTOPS_CUDA_SM90_SOURCES})
  target_compile_options(fastops_cuda_sm90 PRIVATE ${FASTOPS_SM90_GENCODE})
  target_compile_definitions(fastops_cuda_sm90 PRIVATE ${FASTOPS_HOPPER_DEFINITIONS})
  target_compile_definitions(fastops_cuda_kernels PRIVATE ${FASTOPS_HOPPER_DEFINITIONS})
  list(APPEND FASTOPS_CUDA_OBJECTS $<TARGET_OBJECTS:fastops_cuda_sm90>)
endif()

add_library(libfastops_cuda SHARED ${FASTOPS_BINDINGS} ${FASTOPS_CUDA_OBJECTS})
target_compile_definitions(libfastops_cuda PRIVATE FASTOPS_BACKEND_CUDA FASTOPS_DISPATCH_KEY=CUDA)
target_link_libraries(libfastops_cuda PRIVATE fastops_torch)
# The CUDA runtime is linked in, so that the library loads wherever torch does.
set_target_properties(libfastops_cuda PROPERTIES PREFIX "" SKIP_BUILD_RPATH ON
                      LINKER_LANGUAGE CXX CUDA_RUNTIME_LIBRARY Static
                      LIBRARY_OUTPUT_DIRECTORY ${FASTOPS_OUTPUT})
add_custom_command(
  TARGET libfastops_cuda POST_BUILD VERBATIM COMMAND_EXPAND_LISTS
  COMMAND ${FASTOPS_PTXAS_REPORT} merge ${FASTOPS_OUTPUT}/libfastops_cuda.ptxas.json
          ${FASTOPS_CUDA_OBJECTS})

# Not part of anything that ships: `make conformance` compiles it, `make record-conformance` runs it.
if(FASTOPS_SM90_GENCODE)
  set_source_files_properties(tests/simt/conformance/list.cpp PROPERTIES LANGUAGE CUDA)
  add_library(fastops_conformance_sm90 OBJECT EXCLUDE_FROM_ALL ${FASTOPS_CONFORMANCE_SM90_SOURCES})
  target_compile_options(fastops_conformance_sm90 PRIVATE ${FASTOPS_SM90_GENCODE})
  add_executable(fastops_conformance EXCLUDE_FROM_ALL
                 ${FASTOPS_CONFORMANCE_SOURCES} tests/simt/conformance/main.cu
                 $<TARGET_OBJECTS:fastops_conformance_sm90>)
  target_compile_options(fastops_conformance PRIVATE ${FASTOPS_GENCODE})
  foreach(target fastops_conformance fastops_conformance_sm90)
    target_include_directories(${target} PRIVATE tests/simt)
  endforeach()
endif()
