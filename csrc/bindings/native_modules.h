// The parts of fastops._native that families contribute.
#pragma once

#include <pybind11/pybind11.h>

namespace fastops::binding {

void add_attention_plans(pybind11::module_& m);
void add_softmax_plans(pybind11::module_& m);
void add_nm_plans(pybind11::module_& m);
void add_simt(pybind11::module_& m);  // where FASTOPS_SIMT is on

}  // namespace fastops::binding
