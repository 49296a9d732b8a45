#include "engine/options.h"

#include <c10/util/Exception.h>

namespace dlf {

void check(const EngineOptions& options) {
  TORCH_CHECK_VALUE(options.max_batch >= 1 && options.max_batch <= kMostBatch, "max_batch is ", options.max_batch,
                    "; it must be from 1 to ", kMostBatch);
  TORCH_CHECK_VALUE(options.max_context >= 2 && options.max_context <= kMostContext, "max_context is ",
                    options.max_context, "; it must be from 2 to ", kMostContext);
  TORCH_CHECK_VALUE(options.prompt_budget >= 0, "prompt_budget is ", options.prompt_budget,
                    "; it must be a number of tokens, or 0 for one chunk of a prompt");
}

}  // namespace dlf
