#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "engine/cuda/step_loop.h"
#include "model/shard.h"
#include "support/cuda/runtime.h"

namespace dlf {

namespace py = pybind11;

namespace {

DType dtype_named(const std::string& name) {
  return name == "float32" ? DType::float32 : name == "bfloat16" ? DType::bfloat16 : DType::float16;
}

std::vector<MemoryPart> memory_of(const std::vector<ModelSize>& models, const FusionPlan& plan,
                                  const EngineOptions& options) {
  return cuda::plan_memory(plan, models, options);
}

}  // namespace

void bind_devices(py::module_& m) {
  py::class_<cuda::DeviceInfo>(m, "DeviceInfo", "A CUDA device that this process sees.")
      .def_readonly("index", &cuda::DeviceInfo::index)
      .def_readonly("name", &cuda::DeviceInfo::name)
      .def_readonly("total_bytes", &cuda::DeviceInfo::total_bytes)
      .def_readonly("free_bytes", &cuda::DeviceInfo::free_bytes)
      .def_readonly("compute_capability", &cuda::DeviceInfo::compute_capability)
      .def_readonly("multiprocessors", &cuda::DeviceInfo::multiprocessors);

  m.attr("MAX_CUDA_BATCH") = cuda::kMaxBatch;
  m.attr("MAX_SHARDS") = kMostShards;
  m.def(
      "shard_sizes",
      [](const ModelSpec& spec, int64_t shards, int64_t weights, int64_t kv_cache) {
        std::vector<std::pair<int64_t, int64_t>> sizes;
        for (int64_t rank = 0; rank < shards; ++rank) {
          const Shard shard = {rank, shards};
          const int64_t kv_heads = shard_ranges(spec, shard).kv_heads.count;
          sizes.emplace_back(shard_bytes(spec, shard, weights), kv_cache / spec.attention.kv_heads * kv_heads);
        }
        return sizes;
      },
      py::arg("spec"), py::arg("shards"), py::arg("weights"), py::arg("kv_cache"),
      "Bytes of weights and of KV cache that each device has of a split model, which has so many in all. Raises a "
      "ValueError for a model that cannot be split so.");
  m.def("cuda_devices", &cuda::devices, py::call_guard<GilRelease>(),
        "CUDA devices that this process sees; empty without a driver or in a build without CUDA.");

  py::class_<ModelSize>(m, "ModelSize", "What decides how much memory a model takes; known before it is loaded.")
      .def(py::init([](ModelSpec spec, const std::string& dtype, bool quantized, int64_t weights, int64_t adapters) {
             return ModelSize{std::move(spec), dtype_named(dtype), quantized, weights, adapters};
           }),
           py::arg("spec"), py::arg("dtype"), py::arg("quantized"), py::arg("weights"), py::arg("adapters"));

  py::class_<MemoryPart>(m, "MemoryPart", "A part of the memory that a StepLoop takes of a CUDA device.")
      .def_readonly("device", &MemoryPart::device)
      .def_readonly("model", &MemoryPart::model)
      .def_readonly("name", &MemoryPart::name)
      .def_readonly("bytes", &MemoryPart::bytes);

  m.def("cuda_memory", &memory_of, py::arg("models"), py::arg("plan"), py::arg("options"), py::call_guard<GilRelease>(),
        "Memory that a StepLoop on CUDA takes, by device and part; model is -1 if all models share it.");
}

}  // namespace dlf
