// The C interface: nothing is thrown past this file.
#include <algorithm>
#include <cstring>
#include <new>

#include "cpu.h"
#include "device.h"
#include "error.h"
#include "model.h"
#include "session.h"

struct svdq_model {
  std::shared_ptr<const svdq::Model> model;
};
struct svdq_session {
  std::unique_ptr<svdq::Session> session;
};

namespace {

thread_local std::string last_error;

constexpr uint32_t kFirstOptionsSize = 12;  // struct_size, threads, profile
constexpr uint32_t kMaxOptionsSize = 4096;

template <class Body>
svdq_status guarded(Body body) noexcept {
  try {
    body();
    return SVDQ_OK;
  } catch (svdq::Error& error) {
    last_error = std::move(error.text);
    return error.status;
  } catch (const std::bad_alloc&) {
    last_error =
        "[runtime] 'memory': an allocation failed; free memory or use a machine with more.";
    return SVDQ_NO_MEMORY;
  } catch (const std::exception& error) {
    try {
      last_error = svdq::str("[runtime] 'internal': ", error.what(), "; report this.");
    } catch (...) {
    }
    return SVDQ_INTERNAL;
  } catch (...) {
    return SVDQ_INTERNAL;
  }
}

void require(bool condition, const char* call, const char* what) {
  if (!condition) svdq::fail(SVDQ_BAD_ARGUMENT, call, "arguments", what, "see svdq.h");
}

}  // namespace

const char* svdq_version(void) { return "svdq " SVDQ_VERSION_TEXT " (container 1.0, plan 2)"; }

const char* svdq_cpu_features(void) {
  const char* text = "";
  guarded([&] { text = svdq::cpu_features_text().c_str(); });
  return text;
}

const char* svdq_gpus(void) {
  thread_local std::string text;
  guarded([&] { text = svdq::describe_gpus(); });
  return text.c_str();
}

const char* svdq_last_error(void) { return last_error.c_str(); }

svdq_status svdq_open(const char* path, uint32_t flags, svdq_model** model) {
  return guarded([&] {
    require(path != nullptr && model != nullptr, "open", "a null pointer");
    *model = nullptr;
    require((flags & ~15u) == 0, "open", "unknown flags");
    *model = new svdq_model{std::make_shared<const svdq::Model>(path, flags)};
  });
}

void svdq_close(svdq_model* model) { delete model; }

const char* svdq_describe(const svdq_model* model) {
  return model != nullptr ? model->model->description.c_str() : "null";
}

svdq_status svdq_get_port(const svdq_model* model, svdq_direction direction, size_t index,
                          svdq_port* port) {
  return guarded([&] {
    require(model != nullptr && port != nullptr, "get_port", "a null pointer");
    const svdq::Plan& plan = *model->model->plan;
    const auto& ports = direction == SVDQ_INPUT ? plan.inputs : plan.outputs;
    require(index < ports.size(), "get_port", "no such port");
    const svdq::Port& found = ports[index];
    std::memset(port, 0, sizeof *port);
    port->name = found.name.c_str();
    port->dtype = found.dtype;
    port->ndim = static_cast<int32_t>(found.shape.size());
    for (size_t d = 0; d < found.shape.size(); ++d) {
      port->lo[d] = plan.bounds[found.shape[d]].lo;
      port->hi[d] = plan.bounds[found.shape[d]].hi;
    }
  });
}

svdq_status svdq_verify(const svdq_model* model) {
  return guarded([&] {
    require(model != nullptr, "verify", "a null pointer");
    svdq::verify_model(*model->model);
  });
}

svdq_status svdq_session_create(svdq_model* model, const svdq_session_options* options,
                                svdq_session** session) {
  return guarded([&] {
    require(model != nullptr && session != nullptr, "session_create", "a null pointer");
    *session = nullptr;
    svdq_session_options chosen = {};
    if (options != nullptr) {
      const uint32_t size = options->struct_size;
      require(size >= kFirstOptionsSize && size <= kMaxOptionsSize, "session_create",
              "struct_size is not sizeof(svdq_session_options)");
      std::memcpy(&chosen, options, std::min<size_t>(size, sizeof chosen));
      const char* bytes = reinterpret_cast<const char*>(options);
      for (size_t i = sizeof chosen; i < size; ++i)
        require(bytes[i] == 0, "session_create", "an option that this runtime does not have");
    }
    require(!model->model->inspect_only, "session_create",
            "the model was opened with SVDQ_INSPECT_ONLY");
    *session = new svdq_session{svdq::make_session(model->model, chosen)};
  });
}

void svdq_session_destroy(svdq_session* session) { delete session; }

svdq_status svdq_output_shapes(svdq_session* session, const svdq_tensor* inputs, size_t num_inputs,
                               svdq_tensor* outputs, size_t num_outputs) {
  return guarded([&] {
    require(session != nullptr && (inputs != nullptr || num_inputs == 0) &&
                (outputs != nullptr || num_outputs == 0),
            "output_shapes", "a null pointer");
    session->session->output_shapes(inputs, num_inputs, outputs, num_outputs);
  });
}

svdq_status svdq_run(svdq_session* session, const svdq_tensor* inputs, size_t num_inputs,
                     const svdq_tensor* outputs, size_t num_outputs) {
  return svdq_run_on_stream(session, nullptr, inputs, num_inputs, outputs, num_outputs);
}

svdq_status svdq_run_on_stream(svdq_session* session, void* stream, const svdq_tensor* inputs,
                               size_t num_inputs, const svdq_tensor* outputs, size_t num_outputs) {
  return guarded([&] {
    require(session != nullptr && (inputs != nullptr || num_inputs == 0) &&
                (outputs != nullptr || num_outputs == 0),
            "run", "a null pointer");
    session->session->run(inputs, num_inputs, outputs, num_outputs, stream);
  });
}

svdq_status svdq_profile(svdq_session* session, const svdq_launch_time** times, size_t* num_times) {
  return guarded([&] {
    require(session != nullptr && times != nullptr && num_times != nullptr, "profile",
            "a null pointer");
    const auto& measured = session->session->profile();
    *times = measured.data();
    *num_times = measured.size();
  });
}
