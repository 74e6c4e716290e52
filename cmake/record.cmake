# build.json beside the libraries: what `python -m fastops.info` and load errors say of the build.
file(STRINGS ${FASTOPS_TORCH_ROOT}/version.py FASTOPS_TORCH_VERSION REGEX "^__version__ *=")
string(REGEX REPLACE ".*'([^']+)'.*" "\\1" FASTOPS_TORCH_VERSION "${FASTOPS_TORCH_VERSION}")
execute_process(COMMAND git -C ${CMAKE_SOURCE_DIR} rev-parse --short=12 HEAD
                OUTPUT_VARIABLE FASTOPS_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
set(FASTOPS_RECORD_CUDA null)
set(FASTOPS_RECORD_ARCHS "")
if(TARGET libfastops_cuda)
  set(FASTOPS_RECORD_CUDA "\"${CMAKE_CUDA_COMPILER_VERSION}\"")
  string(REPLACE ";" "\", \"" FASTOPS_RECORD_ARCHS "\"${archs}\"")
endif()
set(FASTOPS_RECORD_HOPPER $<IF:$<BOOL:${FASTOPS_HOPPER_BY_DEFAULT}>,true,false>)
string(REPLACE ";" "\", \"" FASTOPS_RECORD_ISAS "\"${FASTOPS_ISAS}\"")
file(GENERATE OUTPUT ${FASTOPS_OUTPUT}/build.json CONTENT "{
  \"commit\": \"${FASTOPS_COMMIT}\",
  \"system\": \"${CMAKE_SYSTEM_NAME} ${CMAKE_SYSTEM_PROCESSOR}\",
  \"compiler\": \"${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}\",
  \"build_type\": \"${CMAKE_BUILD_TYPE}\",
  \"torch\": \"${FASTOPS_TORCH_VERSION}\",
  \"cpu_isas\": [${FASTOPS_RECORD_ISAS}],
  \"cuda\": ${FASTOPS_RECORD_CUDA},
  \"cuda_archs\": [${FASTOPS_RECORD_ARCHS}],
  \"hopper_by_default\": ${FASTOPS_RECORD_HOPPER}
}
")
