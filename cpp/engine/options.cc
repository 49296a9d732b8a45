#include "engine/options.h"

#include "support/option_error.h"

namespace dlf {

void check(const EngineOptions& options) {
  check_option(options.max_batch >= 1 && options.max_batch <= kMostBatch, "max_batch", " is ", options.max_batch,
               "; it must be from 1 to ", kMostBatch);
  check_option(options.max_context >= 2 && options.max_context <= kMostContext, "max_context", " is ",
               options.max_context, "; it must be from 2 to ", kMostContext);
  check_option(options.kv_cache_bytes >= 0, "kv_cache_bytes", " is ", options.kv_cache_bytes,
               "; it must be a number of bytes, or 0 for as many as max_batch "
               "contexts take");
  check_option(options.prompt_budget >= 0, "prompt_budget", " is ", options.prompt_budget,
               "; it must be a number of tokens, or 0 for one chunk of a prompt");
}

}  // namespace dlf
