// An opened artifact: verified, one variant chosen, its code loaded. Immutable.
#pragma once

#include <memory>
#include <string>

#include "code.h"
#include "container.h"
#include "plan.h"

namespace svdq {

struct Model {
  Container container;
  size_t variant =
      SIZE_MAX;  // the chosen one; SIZE_MAX if none fits and the model is only inspected
  Plan plan;     // of the chosen variant, else of the first CPU variant
  std::unique_ptr<LoadedCode> code;  // null if only inspected
  std::string description;           // JSON
};

std::shared_ptr<const Model> open_model(const std::string& path, uint32_t flags);

// All hashes, all CPU plans.
void verify_model(const Model& model);

std::string describe_model(const Model& model);

}  // namespace svdq
