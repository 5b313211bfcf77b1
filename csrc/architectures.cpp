// What the kernels' library has CUDA code for. It tells so itself, through C: any Python can load it, while the module
// with the rest of the build information belongs to the version it was built with.

extern "C" __attribute__((visibility("default"))) const char* ifdd_cuda_architectures() {
  return IFDD_CUDA_ARCHITECTURES;
}
