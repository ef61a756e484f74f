#pragma once

#include <cstdint>
#include <functional>

namespace shazam {

/// Runs body(0) ... body(count - 1), each once and in no particular order, on up to `threads`
/// threads of which the caller is one. Returns when all are done; rethrows the first exception,
/// after which the calls not yet begun are skipped.
///
/// The other threads are started when first needed, kept for the next call, shared by all callers,
/// joined at exit, and started afresh in a forked child.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body);

}  // namespace shazam
