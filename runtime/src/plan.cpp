#include "plan.h"

#include <algorithm>
#include <unordered_set>

#include "checked.h"
#include "error.h"
#include "json.h"

namespace svdq {
namespace {

constexpr uint8_t kMagic[8] = {'S', 'V', 'D', 'Q', 'P', 'L', 'A', 'N'};
constexpr uint64_t kHeaderBytes = 80;
constexpr uint64_t kMaxPlanBytes = 256u << 20;
constexpr uint64_t kMaxArenaBytes = uint64_t{1} << 46;
constexpr uint32_t kMaxStringBytes = 4096;

constexpr struct {
  const char* name;
  size_t bytes;
} kDtypes[] = {{"f32", 4}, {"f64", 8}, {"f16", 2}, {"bf16", 2}, {"i8", 1},
               {"u8", 1},  {"i16", 2}, {"i32", 4}, {"i64", 8},  {"bool", 1}};
constexpr uint32_t kNumDtypes = sizeof kDtypes / sizeof kDtypes[0];

// The tables of the newest binary form, in file order: record size and the most records allowed.
enum Table {
  kDims,
  kInstructions,
  kExprs,
  kShape,
  kInputs,
  kOutputs,
  kBuffers,
  kKernels,
  kArgs,
  kScalars,
  kLaunches,
  kStrings,
  kNumTables
};
constexpr uint32_t kKernelBytesV1 = 8;  // without the shape of a block
constexpr struct {
  const char* name;
  uint32_t record_bytes;
  uint32_t cap;
} kTables[kNumTables] = {
    {"dims", 32, kMaxDims},    {"instructions", 16, 1u << 22}, {"expressions", 8, 1u << 20},
    {"shapes", 4, 1u << 16},   {"inputs", 24, kMaxPorts},      {"outputs", 24, kMaxPorts},
    {"buffers", 24, 1u << 20}, {"kernels", 16, 1u << 16},      {"arguments", 16, 1u << 22},
    {"scalars", 4, 1u << 22},  {"launches", 40, 1u << 20},     {"strings", 1, 1u << 26},
};

class Decoder {
 public:
  Decoder(const uint8_t* bytes, uint64_t num_bytes, const std::string& subject)
      : bytes_(bytes), num_bytes_(num_bytes), subject_(subject) {}

  Plan decode() {
    header();
    plan_.arena_bytes = read_le<uint64_t>(bytes_ + 0x18);
    if (plan_.arena_bytes > kMaxArenaBytes) bad("header", "an arena above 64 TiB");
    dims();
    expressions();
    shapes();
    ports(kInputs, plan_.inputs);
    ports(kOutputs, plan_.outputs);
    buffers();
    kernels();
    args();
    launches();
    return std::move(plan_);
  }

 private:
  [[noreturn]] void bad(const std::string& where, const std::string& what) const {
    fail(SVDQ_BAD_PLAN, "plan", subject_, str(where, ": ", what),
         "the file was not written by svdqc; compile the model again");
  }
  [[noreturn]] void bad(Table table, uint32_t i, const std::string& what) const {
    bad(str(kTables[table].name, "[", i, "]"), what);
  }

  void header() {
    if (num_bytes_ < kHeaderBytes || num_bytes_ > kMaxPlanBytes) {
      bad("header", str("a plan of ", num_bytes_, " bytes"));
    }
    if (!std::equal(kMagic, kMagic + 8, bytes_)) bad("header", "does not start as a plan does");
    abi_ = read_le<uint32_t>(bytes_ + 8);
    if (abi_ > kPlanAbi) {
      fail(SVDQ_NEWER_VERSION, "plan", subject_,
           str("has plan version ", abi_, ", this runtime reads up to ", kPlanAbi),
           "upgrade svdqc");
    }
    if (abi_ == 0 || read_le<uint32_t>(bytes_ + 12) != kHeaderBytes ||
        read_le<uint64_t>(bytes_ + 16) != num_bytes_) {
      bad("header", "sizes that do not match");
    }
    uint64_t at = kHeaderBytes;
    for (int t = 0; t < kNumTables; ++t) {
      count_[t] = read_le<uint32_t>(bytes_ + 0x20 + 4 * static_cast<size_t>(t));
      if (count_[t] > kTables[t].cap) {
        bad("header",
            str(count_[t], " ", kTables[t].name, ", at most ", kTables[t].cap, " are allowed"));
      }
      offset_[t] = at;  // caps keep every sum far below 2^63
      at += align_up(uint64_t{count_[t]} * record_bytes(static_cast<Table>(t)), 8);
    }
    if (at != num_bytes_) bad("header", "tables that do not fill the plan");
  }

  uint32_t record_bytes(Table table) const {
    return table == kKernels && abi_ == 1 ? kKernelBytesV1 : kTables[table].record_bytes;
  }

  const uint8_t* record(Table table, uint32_t i) const {
    return bytes_ + offset_[table] + uint64_t{i} * record_bytes(table);
  }

  uint32_t field(Table table, uint32_t i, uint32_t at) const {
    return read_le<uint32_t>(record(table, i) + at);
  }

  std::string text(Table table, uint32_t i, uint32_t at, bool may_be_empty = false) const {
    const uint32_t first = field(table, i, at), length = field(table, i, at + 4);
    uint32_t end;
    if (!checked_add(first, length, &end) || end > count_[kStrings]) {
      bad(table, i, "a name outside the string table");
    }
    if (length > kMaxStringBytes) bad(table, i, "a name above 4096 bytes");
    std::string found(reinterpret_cast<const char*>(bytes_ + offset_[kStrings] + first), length);
    if (found.empty() && !may_be_empty) bad(table, i, "an empty name");
    if (!valid_utf8(found) || found.find('\0') != std::string::npos)
      bad(table, i, "a name that is not UTF-8");
    return found;
  }

  ExprIndex expr(Table table, uint32_t i, uint32_t at) const {
    const uint32_t index = field(table, i, at);
    if (index >= count_[kExprs]) bad(table, i, str("expression ", index, " does not exist"));
    return index;
  }

  Plan::Span span(Table table, uint32_t i, uint32_t at, Table target) const {
    const Plan::Span found = {field(table, i, at), field(table, i, at + 4)};
    uint32_t end;
    if (!checked_add(found.first, found.count, &end) || end > count_[target]) {
      bad(table, i, str("a range outside the ", kTables[target].name));
    }
    return found;
  }

  void zero(Table table, uint32_t i, uint32_t at) const {
    if (field(table, i, at) != 0) bad(table, i, "a reserved field that is not zero");
  }

  void dims() {
    std::unordered_set<std::string> seen;
    for (uint32_t i = 0; i < count_[kDims]; ++i) {
      const uint8_t* r = record(kDims, i);
      Dim dim = {text(kDims, i, 0), read_le<int64_t>(r + 8), read_le<int64_t>(r + 16),
                 read_le<int64_t>(r + 24)};
      if (!seen.insert(dim.name).second)
        bad(kDims, i, str("the name '", dim.name, "' appears twice"));
      if (dim.lo < 0 || dim.lo > dim.hi || dim.hi > kMaxDimValue || dim.multiple < 1 ||
          dim.multiple > kMaxDimValue) {
        bad(kDims, i,
            str("'", dim.name, "' has the range [", dim.lo, ", ", dim.hi, "], multiple of ",
                dim.multiple));
      }
      dim.lo = static_cast<int64_t>(
          align_up(static_cast<uint64_t>(dim.lo), static_cast<uint64_t>(dim.multiple)));
      dim.hi -= dim.hi % dim.multiple;
      if (dim.lo > dim.hi) bad(kDims, i, str("'", dim.name, "' has no legal value"));
      plan_.dims.push_back(std::move(dim));
    }
  }

  void expressions() {
    plan_.instructions.reserve(count_[kInstructions]);
    for (uint32_t i = 0; i < count_[kInstructions]; ++i) {
      const uint32_t op = field(kInstructions, i, 0);
      const int64_t operand = read_le<int64_t>(record(kInstructions, i) + 8);
      zero(kInstructions, i, 4);
      if (op >= kNumOps) bad(kInstructions, i, str("unknown operation ", op));
      plan_.instructions.push_back({static_cast<Op>(op), operand});
    }
    // Expressions are consecutive and share no instruction, so checking them all takes linear time.
    uint32_t end = 0;
    plan_.exprs.reserve(count_[kExprs]);
    for (uint32_t i = 0; i < count_[kExprs]; ++i) {
      const Plan::Span code = span(kExprs, i, 0, kInstructions);
      if (code.first != end) bad(kExprs, i, "does not follow the expression before it");
      end = code.first + code.count;
      plan_.exprs.push_back(code);
    }
    if (end != count_[kInstructions]) bad("expressions", "instructions that belong to none");
  }

  void shapes() {
    for (uint32_t i = 0; i < count_[kShape]; ++i) expr(kShape, i, 0);
  }

  void ports(Table table, std::vector<Port>& ports) {
    std::unordered_set<std::string> seen;
    for (uint32_t i = 0; i < count_[table]; ++i) {
      Port port;
      port.name = text(table, i, 0);
      if (!seen.insert(port.name).second)
        bad(table, i, str("the name '", port.name, "' appears twice"));
      const uint32_t dtype = field(table, i, 8);
      if (dtype >= kNumDtypes) bad(table, i, str("unknown dtype ", dtype));
      port.dtype = static_cast<svdq_dtype>(dtype);
      const Plan::Span shape = span(table, i, 12, kShape);
      if (shape.count > SVDQ_MAX_RANK)
        bad(table, i, str(shape.count, " dimensions, at most 8 are allowed"));
      zero(table, i, 20);
      for (uint32_t d = 0; d < shape.count; ++d)
        port.shape.push_back(field(kShape, shape.first + d, 0));
      ports.push_back(std::move(port));
    }
  }

  void buffers() {
    plan_.buffers.reserve(count_[kBuffers]);
    for (uint32_t i = 0; i < count_[kBuffers]; ++i) {
      const uint32_t kind = field(kBuffers, i, 0), index = field(kBuffers, i, 4);
      if (kind > 3) bad(kBuffers, i, str("unknown kind ", kind));
      zero(kBuffers, i, 12);
      plan_.buffers.push_back({static_cast<BufferKind>(kind), index, expr(kBuffers, i, 8),
                               read_le<uint64_t>(record(kBuffers, i) + 16)});
    }
  }

  void kernels() {
    std::unordered_set<std::string> seen;
    for (uint32_t i = 0; i < count_[kKernels]; ++i) {
      std::string name = text(kKernels, i, 0);
      const auto symbol = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               c == '_';
      };
      if (!std::all_of(name.begin(), name.end(), symbol))
        bad(kKernels, i, str("'", name, "' is not a C name"));
      if (!seen.insert(name).second) bad(kKernels, i, str("the name '", name, "' appears twice"));
      KernelEntry kernel = {std::move(name), 0, 0};
      if (abi_ > 1) {
        kernel.threads = field(kKernels, i, 8);
        kernel.shared_bytes = field(kKernels, i, 12);
      }
      const bool on_gpu = i == 0 ? kernel.threads > 0 : plan_.is_for_gpu();
      if ((kernel.threads > 0) != on_gpu || kernel.threads > kMaxBlockThreads ||
          kernel.threads % 32 != 0) {
        bad(kKernels, i, str(kernel.threads, " threads"));
      }
      if (kernel.shared_bytes > (on_gpu ? kMaxSharedBytes : 0))
        bad(kKernels, i, str(kernel.shared_bytes, " bytes of shared memory"));
      plan_.kernels.push_back(std::move(kernel));
    }
  }

  void args() {
    plan_.args.reserve(count_[kArgs]);
    for (uint32_t i = 0; i < count_[kArgs]; ++i) {
      const uint32_t buffer = field(kArgs, i, 0), access = field(kArgs, i, 12);
      if (buffer >= count_[kBuffers]) bad(kArgs, i, str("buffer ", buffer, " does not exist"));
      if (access > 2) bad(kArgs, i, str("unknown access ", access));
      plan_.args.push_back(
          {buffer, expr(kArgs, i, 4), expr(kArgs, i, 8), static_cast<Access>(access)});
    }
    plan_.scalars.reserve(count_[kScalars]);
    for (uint32_t i = 0; i < count_[kScalars]; ++i) plan_.scalars.push_back(expr(kScalars, i, 0));
  }

  void launches() {
    plan_.launches.reserve(count_[kLaunches]);
    uint32_t end = 0, scalars_end = 0;
    for (uint32_t i = 0; i < count_[kLaunches]; ++i) {
      const uint32_t kernel = field(kLaunches, i, 0);
      if (kernel >= count_[kKernels]) bad(kLaunches, i, str("kernel ", kernel, " does not exist"));
      const Plan::Span args = span(kLaunches, i, 4, kArgs),
                       scalars = span(kLaunches, i, 12, kScalars);
      if (args.first != end || scalars.first != scalars_end) {
        bad(kLaunches, i, "arguments that do not follow those of the launch before it");
      }
      end = args.first + args.count;
      scalars_end = scalars.first + scalars.count;
      zero(kLaunches, i, 36);
      plan_.launches.push_back({kernel, args.first, args.count, scalars.first, scalars.count,
                                expr(kLaunches, i, 20), expr(kLaunches, i, 24),
                                text(kLaunches, i, 28, true)});
    }
    if (end != count_[kArgs] || scalars_end != count_[kScalars])
      bad("launches", "arguments that belong to none");
  }

  const uint8_t* bytes_;
  uint64_t num_bytes_;
  const std::string& subject_;
  uint32_t abi_ = kPlanAbi;
  uint32_t count_[kNumTables] = {};
  uint64_t offset_[kNumTables] = {};
  Plan plan_;
};

}  // namespace

size_t item_bytes(svdq_dtype dtype) { return kDtypes[dtype].bytes; }
const char* dtype_name(svdq_dtype dtype) { return kDtypes[dtype].name; }

bool dtype_from_name(const std::string& name, svdq_dtype* dtype) {
  for (uint32_t i = 0; i < kNumDtypes; ++i) {
    if (name == kDtypes[i].name) {
      *dtype = static_cast<svdq_dtype>(i);
      return true;
    }
  }
  return false;
}

Plan decode_plan(const uint8_t* bytes, uint64_t num_bytes, const std::string& subject) {
  return Decoder(bytes, num_bytes, subject).decode();
}

}  // namespace svdq
