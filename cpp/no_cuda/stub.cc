#include <c10/util/Exception.h>

#include "engine/cuda/step_loop.h"
#include "fusion/cuda/solve.h"
#include "support/cuda/runtime.h"

// Replaces dlf_cuda in a build without CUDA: every function of it that the rest calls.
namespace dlf {
namespace {

[[noreturn]] void not_built() {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, "this build of dlf has no CUDA: install a torch that has, and build dlf from source ", "there, with nvcc");
}

}  // namespace

std::string cuda::version() { return {}; }

std::vector<cuda::DeviceInfo> cuda::devices() { return {}; }

FusionTensors solve_on_cuda(const at::Tensor&, const at::Tensor&, const at::Tensor&, std::span<const Rule>, int) {
  not_built();
}

std::vector<MemoryPart> cuda::plan_memory(const FusionPlan&, const std::vector<ModelSize>&, const EngineOptions&) {
  not_built();
}

// NOLINTNEXTLINE(performance-unnecessary-value-param): the signature of the CUDA version.
std::unique_ptr<StepLoop> cuda::make_step_loop(FusionPlan, const Models&, EngineOptions, const Adapters&) {
  not_built();
}

}  // namespace dlf
