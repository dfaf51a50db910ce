#include "plan_verify.h"

#include <algorithm>
#include <map>

#include "checked.h"
#include "error.h"

namespace svdq {
namespace {

constexpr int64_t kMaxTasks = int64_t{1} << 40;
constexpr int64_t kMaxScratchBytes = int64_t{1} << 36;
constexpr uint64_t kBufferAlignment = 64;
constexpr uint32_t kNever = UINT32_MAX;

[[noreturn]] void bad(const std::string& subject, const std::string& what) {
  fail(SVDQ_BAD_PLAN, "plan", subject, what,
       "the file was not written by svdqc; compile the model again");
}

std::string launch_name(const Plan& plan, size_t i) {
  return str("launch ", i, " (", plan.kernels[plan.launches[i].kernel].name, ", ",
             plan.launches[i].label, ")");
}

int64_t port_bytes(const Port& port, const int64_t* values, const std::string& subject) {
  int64_t total = static_cast<int64_t>(item_bytes(port.dtype));
  for (const ExprIndex size : port.shape) {
    if (values[size] < 0 || !checked_mul(total, values[size], &total)) {
      bad(subject, str("'", port.name, "' has an impossible size"));
    }
  }
  return total;
}

class Verifier {
 public:
  Verifier(Plan& plan, const std::vector<TensorEntry>& tensors, const std::string& subject)
      : plan_(plan), tensors_(tensors), subject_(subject) {}

  void verify() {
    bound_expressions();
    find_binders();
    check_buffers();
    check_launches();
    if (plan_.is_for_gpu()) check_gpu_launches();
    check_overlaps();
    check_corner([](const Dim& dim) { return dim.hi; });
    check_corner([](const Dim& dim) { return dim.lo; });
  }

 private:
  void bound_expressions() {
    std::vector<Interval> ranges;
    for (const Dim& dim : plan_.dims) ranges.push_back({dim.lo, dim.hi});
    plan_.bounds.resize(plan_.exprs.size());
    for (ExprIndex i = 0; i < plan_.exprs.size(); ++i) {
      const EvalError error = bound(plan_.code(i), ranges.data(), ranges.size(), &plan_.bounds[i]);
      if (error != EvalError::none) bad(subject_, str("expression ", i, " ", describe(error)));
    }
  }

  // The one dim of an expression's code; kNever if there is none or more than one.
  uint32_t only_dim(Code code) const {
    uint32_t found = kNever;
    for (uint32_t i = 0; i < code.count; ++i) {
      if (code.first[i].op != Op::dim) continue;
      const uint32_t dim = static_cast<uint32_t>(code.first[i].operand);
      if (found != kNever && found != dim) return kNever;
      found = dim;
    }
    return found;
  }

  void find_binders() {
    std::vector<bool> found(plan_.dims.size()), plain(plan_.dims.size());
    plan_.binders.resize(plan_.dims.size());
    for (uint32_t p = 0; p < plan_.inputs.size(); ++p) {
      const Port& port = plan_.inputs[p];
      for (uint32_t axis = 0; axis < port.shape.size(); ++axis) {
        const Code code = plan_.code(port.shape[axis]);
        const uint32_t dim = only_dim(code);
        if (dim == kNever) continue;
        const bool is_plain = code.count == 1;
        if (found[dim] && (plain[dim] || !is_plain)) continue;
        plan_.binders[dim] = {p, axis, port.shape[axis], is_plain};
        found[dim] = true;
        plain[dim] = is_plain;
      }
    }
    for (size_t d = 0; d < plan_.dims.size(); ++d) {
      if (!found[d] && plan_.dims[d].lo != plan_.dims[d].hi) {
        bad(subject_, str("dim '", plan_.dims[d].name, "' is no input's size"));
      }
      if (!found[d]) plan_.binders[d] = {kNever, 0, 0, false};
    }
  }

  void check_buffers() {
    for (size_t i = 0; i < plan_.buffers.size(); ++i) {
      const Buffer& buffer = plan_.buffers[i];
      const size_t limit = buffer.kind == BufferKind::input    ? plan_.inputs.size()
                           : buffer.kind == BufferKind::output ? plan_.outputs.size()
                           : buffer.kind == BufferKind::weight ? tensors_.size()
                                                               : 1;
      if (buffer.index >= limit)
        bad(subject_, str("buffer ", i, " names tensor ", buffer.index, " of ", limit));
      if (buffer.kind != BufferKind::arena) {
        if (buffer.arena_offset != 0)
          bad(subject_, str("buffer ", i, " has an arena offset but is not in the arena"));
        continue;
      }
      if (buffer.arena_offset % kBufferAlignment != 0)
        bad(subject_, str("buffer ", i, " is not 64-aligned"));
      if (largest(i) > plan_.arena_bytes - std::min(plan_.arena_bytes, buffer.arena_offset) ||
          buffer.arena_offset > plan_.arena_bytes) {
        bad(subject_, str("buffer ", i, " goes beyond the arena of ", plan_.arena_bytes, " bytes"));
      }
    }
  }

  uint64_t largest(size_t buffer) const {
    return static_cast<uint64_t>(
        std::max<int64_t>(0, plan_.bounds[plan_.buffers[buffer].num_bytes].hi));
  }

  void check_launches() {
    first_use_.assign(plan_.buffers.size(), kNever);
    last_use_.assign(plan_.buffers.size(), 0);
    std::vector<bool> written(plan_.buffers.size());
    std::vector<bool> output_written(plan_.outputs.size());
    for (uint32_t i = 0; i < plan_.launches.size(); ++i) {
      const Launch& launch = plan_.launches[i];
      const Interval scratch = plan_.bounds[launch.scratch_bytes];
      if (scratch.hi > kMaxScratchBytes)
        bad(subject_, str(launch_name(plan_, i), " asks for ", scratch.hi, " bytes of scratch"));
      plan_.scratch_bytes =
          std::max(plan_.scratch_bytes, static_cast<uint64_t>(std::max<int64_t>(0, scratch.hi)));
      if (plan_.bounds[launch.num_tasks].hi > kMaxTasks)
        bad(subject_, str(launch_name(plan_, i), " has too many tasks"));
      const Arg* const args = plan_.args.data() + launch.first_arg;
      for (uint32_t a = 0; a < launch.num_args;
           ++a) {  // reads see what earlier launches wrote, not this one
        const uint32_t b = args[a].buffer;
        const BufferKind kind = plan_.buffers[b].kind;
        first_use_[b] = std::min(first_use_[b], i);
        last_use_[b] = i;
        const bool temporary = kind == BufferKind::arena || kind == BufferKind::output;
        if (args[a].access != Access::write && temporary && !written[b]) {
          bad(subject_,
              str(launch_name(plan_, i), " reads buffer ", b, " before anything is written to it"));
        }
        if (args[a].access != Access::read && !temporary) {
          bad(subject_,
              str(launch_name(plan_, i), " writes to buffer ", b, ", an input or a weight"));
        }
      }
      for (uint32_t a = 0; a < launch.num_args; ++a) {
        const Buffer& buffer = plan_.buffers[args[a].buffer];
        if (args[a].access == Access::read) continue;
        written[args[a].buffer] = true;
        if (buffer.kind == BufferKind::output) output_written[buffer.index] = true;
      }
    }
    for (size_t o = 0; o < plan_.outputs.size(); ++o) {
      if (!output_written[o])
        bad(subject_, str("output '", plan_.outputs[o].name, "' is never written"));
    }
  }

  // A grid holds 2^31 - 1 blocks; a kernel's block of parameters has one size.
  void check_gpu_launches() const {
    constexpr int64_t kMaxBlocks = INT32_MAX;
    std::vector<const Launch*> first(plan_.kernels.size());
    for (size_t i = 0; i < plan_.launches.size(); ++i) {
      const Launch& launch = plan_.launches[i];
      if (plan_.bounds[launch.num_tasks].hi > kMaxBlocks)
        bad(subject_, str(launch_name(plan_, i), " has more tasks than a grid has blocks"));
      if (plan_.bounds[launch.scratch_bytes].hi > 0)
        bad(subject_, str(launch_name(plan_, i), " asks for scratch, which GPUs have not"));
      if (launch.num_args > kMaxParamWords || launch.num_scalars > kMaxParamWords - launch.num_args)
        bad(subject_, str(launch_name(plan_, i), " has more arguments than fit 4 KiB"));
      const Launch*& other = first[launch.kernel];
      if (other == nullptr) other = &launch;
      if (other->num_args != launch.num_args || other->num_scalars != launch.num_scalars)
        bad(subject_, str(launch_name(plan_, i), " has not as many arguments as before"));
    }
  }

  // Walks the launches with the set of buffers in use, ordered by offset: a newcomer may overlap
  // only its neighbours.
  void check_overlaps() const {
    std::vector<std::pair<uint32_t, uint32_t>> starts, ends;  // (launch, buffer)
    for (uint32_t b = 0; b < plan_.buffers.size(); ++b) {
      if (plan_.buffers[b].kind != BufferKind::arena || first_use_[b] == kNever || largest(b) == 0)
        continue;
      starts.emplace_back(first_use_[b], b);
      ends.emplace_back(last_use_[b], b);
    }
    std::sort(starts.begin(), starts.end());
    std::sort(ends.begin(), ends.end());
    std::map<uint64_t, uint32_t> in_use;  // offset → buffer
    size_t next_end = 0;
    for (const auto& [launch, b] : starts) {
      for (; next_end < ends.size() && ends[next_end].first < launch; ++next_end) {
        in_use.erase(plan_.buffers[ends[next_end].second].arena_offset);
      }
      const uint64_t begin = plan_.buffers[b].arena_offset, end = begin + largest(b);
      const auto after = in_use.lower_bound(begin);
      if (after != in_use.end() && after->first < end) overlap(b, after->second, launch);
      if (after != in_use.begin()) {
        const uint32_t before = std::prev(after)->second;
        if (plan_.buffers[before].arena_offset + largest(before) > begin)
          overlap(b, before, launch);
      }
      in_use.emplace(begin, b);
    }
  }

  [[noreturn]] void overlap(uint32_t a, uint32_t b, uint32_t launch) const {
    bad(subject_, str("buffers ", std::min(a, b), " and ", std::max(a, b),
                      " overlap while both are in use at ", launch_name(plan_, launch)));
  }

  template <class Choose>
  void check_corner(Choose choose) const {
    std::vector<int64_t> dims, values(plan_.exprs.size());
    for (const Dim& dim : plan_.dims) dims.push_back(choose(dim));
    evaluate_all(plan_, dims.data(), values.data(), subject_);
    check_sizes(plan_, tensors_, values.data(), subject_);
  }

  Plan& plan_;
  const std::vector<TensorEntry>& tensors_;
  const std::string& subject_;
  std::vector<uint32_t> first_use_, last_use_;  // per buffer, a launch
};

}  // namespace

void verify_plan(Plan& plan, const std::vector<TensorEntry>& tensors, const std::string& subject) {
  Verifier(plan, tensors, subject).verify();
}

void evaluate_all(const Plan& plan, const int64_t* dims, int64_t* values,
                  const std::string& subject) {
  for (ExprIndex i = 0; i < plan.exprs.size(); ++i) {
    const EvalError error = evaluate(plan.code(i), dims, plan.dims.size(), &values[i]);
    if (error != EvalError::none) bad(subject, str("expression ", i, " ", describe(error)));
  }
}

void check_sizes(const Plan& plan, const std::vector<TensorEntry>& tensors, const int64_t* values,
                 const std::string& subject) {
  for (size_t i = 0; i < plan.buffers.size(); ++i) {
    const Buffer& buffer = plan.buffers[i];
    const int64_t size = values[buffer.num_bytes];
    bool fits = size >= 0;
    if (buffer.kind == BufferKind::input) {
      fits = fits && size == port_bytes(plan.inputs[buffer.index], values, subject);
    } else if (buffer.kind == BufferKind::output) {
      fits = fits && size == port_bytes(plan.outputs[buffer.index], values, subject);
    } else if (buffer.kind == BufferKind::weight) {
      fits = fits && static_cast<uint64_t>(size) <= tensors[buffer.index].size;
    } else {  // offset <= arena_bytes was proved
      fits = fits && static_cast<uint64_t>(size) <= plan.arena_bytes - buffer.arena_offset;
    }
    if (!fits)
      bad(subject, str("buffer ", i, " has ", size, " bytes, which is not what its memory has"));
  }
  for (size_t i = 0; i < plan.launches.size(); ++i) {
    const Launch& launch = plan.launches[i];
    const int64_t scratch = values[launch.scratch_bytes];
    if (values[launch.num_tasks] < 0 || scratch < 0 ||
        static_cast<uint64_t>(scratch) > plan.scratch_bytes) {
      bad(subject, str(launch_name(plan, i), ": impossible number of tasks or scratch size"));
    }
    for (uint32_t a = 0; a < launch.num_args; ++a) {
      const Arg& arg = plan.args[launch.first_arg + a];
      const int64_t offset = values[arg.byte_offset], size = values[arg.num_bytes];
      const int64_t available = values[plan.buffers[arg.buffer].num_bytes];
      if (offset < 0 || size < 0 || offset > available || size > available - offset) {
        bad(subject,
            str(launch_name(plan, i), ": argument ", a, " touches bytes [", offset, ", ", offset,
                " + ", size, ") of buffer ", arg.buffer, ", which has ", available));
      }
    }
  }
}

void match_manifest(const Plan& plan, const Container& container) {
  const auto same_ports = [&](const std::vector<Port>& ports,
                              const std::vector<ManifestPort>& shown) {
    if (ports.size() != shown.size()) return false;
    for (size_t i = 0; i < ports.size(); ++i) {
      if (ports[i].name != shown[i].name || dtype_name(ports[i].dtype) != shown[i].dtype ||
          ports[i].shape.size() != shown[i].shape.size()) {
        return false;
      }
      for (size_t d = 0; d < ports[i].shape.size(); ++d) {
        const Interval range = plan.bounds[ports[i].shape[d]];
        const int64_t size = shown[i].shape[d];
        if (size >= 0 && (range.lo != size || range.hi != size)) return false;
      }
    }
    return true;
  };
  bool same = same_ports(plan.inputs, container.inputs) &&
              same_ports(plan.outputs, container.outputs) &&
              plan.dims.size() == container.dims.size();
  for (size_t i = 0; same && i < plan.dims.size(); ++i) {
    const Dim& dim = plan.dims[i];
    const ManifestDim& shown = container.dims[i];
    same = dim.name == shown.name && dim.multiple == shown.multiple && dim.lo >= shown.lo &&
           dim.hi <= shown.hi;
  }
  if (!same)
    bad(container.path, "the plan's inputs, outputs or dims are not those of the manifest");
}

}  // namespace svdq
