// Python module ifdd_kernels._runtime: what this build is and what it uses on this machine. No torch here.
#include <pybind11/pybind11.h>

#include <string>

#include "ifdd/isa.h"

namespace py = pybind11;

namespace {

py::tuple split(const std::string& text) {
  py::list parts;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find(',', begin);
    if (end == std::string::npos) end = text.size();
    parts.append(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return py::tuple(parts);
}

py::dict build_info() {
  py::list compiled;
  for (ifdd::Isa isa : {ifdd::Isa::base, ifdd::Isa::v3, ifdd::Isa::v4}) {
    if (ifdd::isa_compiled(isa)) compiled.append(ifdd::isa_name(isa));
  }
  py::dict info;
  info["version"] = IFDD_VERSION;
  info["compiler"] = IFDD_COMPILER;
  info["flags"] = IFDD_FLAGS;
  info["build_type"] = IFDD_BUILD_TYPE;
  info["torch_build"] = IFDD_TORCH_BUILD;    // version of torch whose headers were used
  info["torch_target"] = IFDD_TORCH_TARGET;  // oldest torch the stable ABI calls allow
  info["instruction_sets"] = py::tuple(compiled);
  info["instruction_set"] = ifdd::isa_name(ifdd::active_isa());
  info["matrix_tiles"] = ifdd::matrix_tiles_text();
  info["sanitize"] = split(IFDD_SANITIZE);
  return info;
}

}  // namespace

PYBIND11_MODULE(_runtime, m) {
  m.doc() = "Build information of the native library of ifdd_kernels.";
  m.def("build_info", &build_info, "What was built, and the instruction set that the kernels use on this machine.");
}
