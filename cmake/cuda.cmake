# libfastops_cuda: built where nvcc is found, or on demand. Needs no GPU and no CUDA torch.
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
# Architectures go in per file below: sm_80 code also as PTX for newer GPUs, Hopper code for 9.0a.
set(CMAKE_CUDA_ARCHITECTURES OFF)
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
