// Runs a package that `ifdd export --format aoti` wrote, without Python.
//
//   classify PACKAGE OPS CLIPS LOGITS
//
// PACKAGE: the .pt2 file. OPS: the library of the ops, _ops.so of ifdd_kernels. CLIPS: raw float32 numbers in this
// machine's byte order, any number of clips (3, T, S, S) of RGB in [0, 1], one after the other. LOGITS is written: raw
// float32 (clips, classes). The most probable class of each clip is printed.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using Metadata = std::unordered_map<std::string, std::string>;

// An integer that the export left in the package.
int64_t number(const Metadata& metadata, const std::string& name) {
  const auto found = metadata.find(name);
  if (found == metadata.end())
    throw std::runtime_error("the package has no " + name + ": `ifdd export` did not write it");
  return std::stoll(found->second);
}

std::vector<float> read_floats(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  const auto bytes = std::filesystem::file_size(path);
  if (bytes % sizeof(float) != 0) throw std::runtime_error(path + ": not a whole number of float32 values");
  std::vector<float> values(bytes / sizeof(float));
  if (!file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(bytes))) {
    throw std::runtime_error(path + ": cannot be read");
  }
  return values;
}

void write_floats(const std::string& path, const at::Tensor& values) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(values.const_data_ptr()), static_cast<std::streamsize>(values.nbytes()));
  if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
}

void run(const std::string& package, const std::string& ops, const std::string& clips_file,
         const std::string& logits_file) {
  // First the ops: the package asks PyTorch for them when it is loaded.
  if (dlopen(ops.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
  torch::inductor::AOTIModelPackageLoader loader(package);
  const Metadata metadata = loader.get_metadata();
  const int64_t frames = number(metadata, "clip_frames"), size = number(metadata, "image_size");

  std::vector<float> pixels = read_floats(clips_file);
  const int64_t clip = 3 * frames * size * size, count = static_cast<int64_t>(pixels.size());
  if (count == 0 || count % clip != 0) {
    throw std::runtime_error(clips_file + ": expected a multiple of 3 * " + std::to_string(frames) + " * " +
                             std::to_string(size) + " * " + std::to_string(size) + " values, got " +
                             std::to_string(count));
  }
  const c10::InferenceMode no_gradients;
  // The tensor reads `pixels`, which outlives it.
  const at::Tensor clips = at::from_blob(pixels.data(), {count / clip, 3, frames, size, size}, at::kFloat);
  // The results in the order of the export: logits, lifting residual, dynamic feature.
  const at::Tensor logits = loader.run({clips}).at(0).contiguous();
  write_floats(logits_file, logits);

  const auto names = metadata.find("class_names");
  std::cout << "classes: " << (names == metadata.end() ? "unnamed" : names->second) << '\n';
  const at::Tensor best = logits.argmax(1), probability = logits.softmax(1).amax(1);
  for (int64_t i = 0; i < logits.size(0); ++i) {
    std::cout << "clip " << i << ": class " << best[i].item<int64_t>() << ", probability "
              << probability[i].item<float>() << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: classify PACKAGE OPS CLIPS LOGITS\n";
    return 2;
  }
  try {
    run(argv[1], argv[2], argv[3], argv[4]);
  } catch (const std::exception& error) {
    const std::string text = error.what();
    std::cerr << "classify: " << text.substr(0, text.find('\n')) << '\n';
    return 1;
  }
  return 0;
}
