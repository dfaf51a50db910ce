// Devices by name, and which of them a session gets.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda_device.h"
#include "session.h"

namespace svdq {

// The session that the options ask for. Throws SVDQ_BAD_ARGUMENT for a device that is not "cpu",
// "cuda", "cuda:N" or "auto".
std::unique_ptr<Session> make_session(std::shared_ptr<const Model> model,
                                      const svdq_session_options& options);

// The GPUs of this machine, looked for only if the file has code for some; none: `reason` says why.
std::vector<cuda::DeviceInfo> find_gpus(const Container& container, std::string* reason);

// The JSON of svdq_gpus.
std::string describe_gpus();

}  // namespace svdq
