// The proof that a plan stays inside its memory, made before anything runs.
#pragma once

#include <string>

#include "container.h"
#include "plan.h"

namespace svdq {

// For all legal dims: no expression overflows or divides by zero; every arena buffer lies inside
// the arena; no two arena buffers that are in use at the same launch overlap; nothing is read
// before it is written; every output is written; inputs and weights are not; every dim can be read
// from an input. For the smallest and the largest dims: check_sizes. Fills plan.bounds, binders and
// scratch_bytes. Throws SVDQ_BAD_PLAN.
void verify_plan(Plan& plan, const std::vector<TensorEntry>& tensors, const std::string& subject);

// values[e] = expression e at `dims`. Throws SVDQ_BAD_PLAN.
void evaluate_all(const Plan& plan, const int64_t* dims, int64_t* values,
                  const std::string& subject);

// At these dims: every argument's range lies inside its buffer, every buffer inside its tensor or
// the arena, and ports' buffers are exactly as large as the port. Allocates only to report. Throws
// SVDQ_BAD_PLAN.
void check_sizes(const Plan& plan, const std::vector<TensorEntry>& tensors, const int64_t* values,
                 const std::string& subject);

// The plan's ports and dims are those the manifest shows. Throws SVDQ_BAD_PLAN.
void match_manifest(const Plan& plan, const Container& container);

}  // namespace svdq
