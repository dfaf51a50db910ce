#include "container.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <unordered_set>

#include "checked.h"
#include "error.h"
#include "plan.h"

namespace svdq {
namespace {

constexpr uint8_t kMagic[8] = {0x89, 'S', 'V', 'D', 'Q', '\r', '\n', 0x1a};
constexpr uint64_t kHeaderBytes = 64;
constexpr uint64_t kMaxManifestBytes = 16u << 20;
constexpr size_t kMaxSections = 65536, kMaxTensors = 262144, kMaxVariants = 256;
constexpr size_t kMaxNameBytes = 4096;
constexpr std::string_view kSectionKinds[] = {"weights", "code", "plan", "graph"};
constexpr const char* kCompileAgain = "the file was not written by svdqc; compile the model again";
constexpr const char* kCopyAgain = "copy or download the file again";

// Reads the manifest's fields, naming the field in every failure.
class ManifestReader {
 public:
  ManifestReader(const std::string& path, uint64_t file_size)
      : path_(path), file_size_(file_size) {}

  [[noreturn]] void bad(const std::string& field, const std::string& what) const {
    fail(SVDQ_MALFORMED, "open", path_, str("manifest ", field, ": ", what), kCompileAgain);
  }

  const Json& field(const Json& object, const std::string& where, std::string_view key,
                    Json::Kind kind) const {
    const Json* found = object.find(key);
    if (found == nullptr) bad(str(where, key), "missing");
    if (found->kind != kind) bad(str(where, key), "not of the required type");
    return *found;
  }

  std::string text(const Json& object, const std::string& where, std::string_view key) const {
    const Json& found = field(object, where, key, Json::Kind::string);
    if (found.text.size() > kMaxNameBytes) bad(str(where, key), "too long");
    if (found.text.find('\0') != std::string::npos) bad(str(where, key), "holds a NUL");
    return found.text;
  }

  int64_t integer(const Json& object, const std::string& where, std::string_view key, int64_t lo,
                  int64_t hi) const {
    const int64_t value = field(object, where, key, Json::Kind::integer).integer;
    if (value < lo || value > hi) {
      bad(str(where, key), str("is ", value, ", must be in [", lo, ", ", hi, "]"));
    }
    return value;
  }

  const std::vector<Json>& list(const Json& object, const std::string& where, std::string_view key,
                                size_t cap) const {
    const Json& found = field(object, where, key, Json::Kind::array);
    if (found.items.size() > cap) {
      bad(str(where, key),
          str("has ", found.items.size(), " entries, at most ", cap, " are allowed"));
    }
    return found.items;
  }

  void unique(std::unordered_set<std::string>& seen, const std::string& where,
              const std::string& name) const {
    if (name.empty()) bad(where, "empty name");
    if (!seen.insert(name).second) bad(where, str("the name '", name, "' appears twice"));
  }

  std::vector<Section> sections(const Json& root, uint64_t manifest_end) const {
    std::vector<Section> result;
    uint64_t end = manifest_end;
    const std::vector<Json>& entries = list(root, "", "sections", kMaxSections);
    for (size_t i = 0; i < entries.size(); ++i) {
      const std::string where = str("sections[", i, "].");
      Section section;
      section.kind = text(entries[i], where, "kind");
      if (std::find(std::begin(kSectionKinds), std::end(kSectionKinds), section.kind) ==
          std::end(kSectionKinds)) {
        bad(str(where, "kind"), str("unknown kind '", section.kind, "'"));
      }
      section.offset = static_cast<uint64_t>(integer(entries[i], where, "offset", 0, INT64_MAX));
      section.size = static_cast<uint64_t>(integer(entries[i], where, "size", 1, INT64_MAX));
      const std::string digest = text(entries[i], where, "sha256");
      if (!from_hex(digest.data(), digest.size(), &section.digest)) {
        bad(str(where, "sha256"), "not 64 hexadecimal digits");
      }
      if (section.offset % kSectionAlignment != 0)
        bad(str(where, "offset"), "not a multiple of 4096");
      if (section.offset < end) bad(str(where, "offset"), "overlaps what comes before");
      if (i > 0 && section.offset != align_up(end, kSectionAlignment)) {
        bad(str(where, "offset"), "leaves a gap before the section");
      }
      uint64_t section_end;
      if (!checked_add(section.offset, section.size, &section_end) || section_end > file_size_) {
        bad(str(where, "size"), "goes beyond the end of the file");
      }
      end = section_end;
      result.push_back(std::move(section));
    }
    if (result.empty()) bad("sections", "empty");
    if (end != file_size_) bad("sections", "end before the end of the file");
    return result;
  }

  std::vector<TensorEntry> tensors(const Json& root, const std::vector<Section>& sections) const {
    std::vector<TensorEntry> result;
    std::unordered_set<std::string> names;
    const std::vector<Json>& entries = list(root, "", "tensors", kMaxTensors);
    for (size_t i = 0; i < entries.size(); ++i) {
      const std::string where = str("tensors[", i, "].");
      TensorEntry tensor;
      tensor.name = text(entries[i], where, "name");
      unique(names, str(where, "name"), tensor.name);
      text(entries[i], where, "dtype");
      text(entries[i], where, "layout");
      for (const Json& size : list(entries[i], where, "shape", 16)) {
        if (size.kind != Json::Kind::integer || size.integer < 0)
          bad(str(where, "shape"), "not sizes");
      }
      const size_t index = static_cast<size_t>(
          integer(entries[i], where, "section", 0, static_cast<int64_t>(sections.size()) - 1));
      if (sections[index].kind != "weights") bad(str(where, "section"), "not a weights section");
      const uint64_t offset =
          static_cast<uint64_t>(integer(entries[i], where, "offset", 0, INT64_MAX));
      tensor.size = static_cast<uint64_t>(integer(entries[i], where, "size", 0, INT64_MAX));
      if (offset % kTensorAlignment != 0) bad(str(where, "offset"), "not a multiple of 256");
      uint64_t end;
      if (!checked_add(offset, tensor.size, &end) || end > sections[index].size) {
        bad(str(where, "size"), "goes beyond its section");
      }
      tensor.offset = sections[index].offset + offset;
      result.push_back(std::move(tensor));
    }
    return result;
  }

  std::vector<Variant> variants(const Json& root, const std::vector<Section>& sections) const {
    std::vector<Variant> result;
    const std::vector<Json>& entries = list(root, "", "variants", kMaxVariants);
    for (size_t i = 0; i < entries.size(); ++i) {
      const std::string where = str("variants[", i, "].");
      Variant variant;
      variant.target = text(entries[i], where, "target");
      if (variant.target.empty()) bad(str(where, "target"), "empty");
      for (const Json& feature : list(entries[i], where, "isa_features", 64)) {
        if (feature.kind != Json::Kind::string) bad(str(where, "isa_features"), "not names");
        variant.isa_features.push_back(feature.text);
      }
      const auto section = [&](const char* kind) {
        const size_t index = static_cast<size_t>(
            integer(entries[i], where, kind, 0, static_cast<int64_t>(sections.size()) - 1));
        if (sections[index].kind != kind) bad(str(where, kind), str("not a ", kind, " section"));
        return index;
      };
      variant.code = section("code");
      variant.plan = section("plan");
      result.push_back(std::move(variant));
    }
    if (result.empty()) bad("variants", "empty");
    return result;
  }

  std::vector<ManifestDim> dims(const Json& root) const {
    std::vector<ManifestDim> result;
    std::unordered_set<std::string> names;
    const std::vector<Json>& entries = list(root, "", "dims", kMaxDims);
    for (size_t i = 0; i < entries.size(); ++i) {
      const std::string where = str("dims[", i, "].");
      ManifestDim dim;
      dim.name = text(entries[i], where, "name");
      unique(names, str(where, "name"), dim.name);
      dim.lo = integer(entries[i], where, "lo", 0, kMaxDimValue);
      dim.hi = integer(entries[i], where, "hi", dim.lo, kMaxDimValue);
      dim.multiple = integer(entries[i], where, "multiple", 1, kMaxDimValue);
      result.push_back(std::move(dim));
    }
    return result;
  }

  std::vector<ManifestPort> ports(const Json& root, const char* key) const {
    std::vector<ManifestPort> result;
    std::unordered_set<std::string> names;
    const std::vector<Json>& entries = list(root, "", key, kMaxPorts);
    for (size_t i = 0; i < entries.size(); ++i) {
      const std::string where = str(key, "[", i, "].");
      ManifestPort port;
      port.name = text(entries[i], where, "name");
      unique(names, str(where, "name"), port.name);
      port.dtype = text(entries[i], where, "dtype");
      for (const Json& size : list(entries[i], where, "shape", SVDQ_MAX_RANK)) {
        if (size.kind == Json::Kind::string) {
          port.shape.push_back(-1);
        } else if (size.kind == Json::Kind::integer && size.integer >= 0) {
          port.shape.push_back(size.integer);
        } else {
          bad(str(where, "shape"), "neither sizes nor expressions");
        }
      }
      result.push_back(std::move(port));
    }
    return result;
  }

  void versions(const Json& root) const {
    for (const Json& feature : list(root, "", "required_features", 1024)) {
      if (feature.kind != Json::Kind::string) bad("required_features", "not names");
      fail(SVDQ_UNKNOWN_FEATURE, "open", path_,
           str("needs the feature '", feature.text, "', which this runtime does not have"),
           "upgrade svdqc");
    }
    const Json& versions = field(root, "", "versions", Json::Kind::object);
    const auto check = [&](const char* key, int64_t ours) {
      const int64_t theirs = integer(versions, "versions.", key, 1, INT32_MAX);
      if (theirs > ours) {
        fail(SVDQ_NEWER_VERSION, "open", path_,
             str("has ", key, " version ", theirs, ", this runtime reads up to ", ours),
             "upgrade svdqc");
      }
    };
    check("plan", kPlanAbi);
    check("quantization", kQuantizationVersion);
  }

 private:
  const std::string& path_;
  uint64_t file_size_;
};

// Returns the manifest's size.
uint64_t check_header(const std::string& path, const FileMap& file) {
  const size_t at_hand = static_cast<size_t>(std::min<uint64_t>(file.size(), sizeof kMagic));
  if (at_hand == 0 || std::memcmp(file.data(), kMagic, at_hand) != 0) {
    fail(SVDQ_NOT_AN_ARTIFACT, "open", path, "not an svdqc artifact",
         "give the path of a .svdq file; 'svdqc compile' makes one");
  }
  if (file.size() < kHeaderBytes) {
    fail(SVDQ_TRUNCATED, "open", path, str("only ", file.size(), " bytes of a 64-byte header"),
         kCopyAgain);
  }
  const uint8_t* header = file.data();
  const uint16_t major = read_le<uint16_t>(header + 0x08), minor = read_le<uint16_t>(header + 0x0A);
  if (major > kContainerMajor) {
    fail(SVDQ_NEWER_VERSION, "open", path,
         str("container version ", major, ".", minor, ", this runtime reads ", kContainerMajor,
             ".x"),
         "upgrade svdqc");
  }
  if (major == 0 || read_le<uint32_t>(header + 0x0C) != kHeaderBytes) {
    fail(SVDQ_MALFORMED, "open", path, "a damaged header", kCopyAgain);
  }
  const uint64_t file_size = read_le<uint64_t>(header + 0x10);
  if (file.size() < file_size) {
    fail(SVDQ_TRUNCATED, "open", path, str("has ", file.size(), " of ", file_size, " bytes"),
         kCopyAgain);
  }
  if (file.size() > file_size) {
    fail(SVDQ_ALTERED, "open", path,
         str(file.size() - file_size, " bytes follow the end of the artifact"), kCopyAgain);
  }
  const uint64_t manifest_size = read_le<uint64_t>(header + 0x18);
  if (manifest_size > kMaxManifestBytes || manifest_size < 2 ||
      manifest_size > file_size - kHeaderBytes) {
    fail(SVDQ_MALFORMED, "open", path, str("a manifest of ", manifest_size, " bytes"), kCopyAgain);
  }
  return manifest_size;
}

void check_zero_padding(const Container& container, uint64_t manifest_end) {
  uint64_t end = manifest_end;
  for (const Section& section : container.sections) {
    const uint8_t* begin = container.file->data() + end;
    if (std::any_of(begin, container.file->data() + section.offset,
                    [](uint8_t b) { return b != 0; })) {
      fail(SVDQ_ALTERED, "open", container.path,
           str("bytes other than zero before offset ", section.offset), kCopyAgain);
    }
    end = section.offset + section.size;
  }
}

}  // namespace

FileMap::FileMap(const std::string& path) {
  const auto refuse = [&](const char* what) {
    fail(SVDQ_NOT_FOUND, "open", path, str(what, ": ", std::strerror(errno)),
         "give the path of a .svdq file that you may read");
  };
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) refuse("cannot open");
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    errno = S_ISDIR(info.st_mode) ? EISDIR : EINVAL;
    refuse("not a regular file");
  }
  size_ = static_cast<uint64_t>(info.st_size);
  if (size_ > 0) {
    void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) {
      const int reason = errno;
      ::close(fd);
      errno = reason;
      refuse("cannot map");
    }
    data_ = static_cast<const uint8_t*>(mapped);
  }
  ::close(fd);
}

FileMap::~FileMap() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

uint64_t Container::weight_bytes() const {
  uint64_t total = 0;
  for (const Section& section : sections) total += section.kind == "weights" ? section.size : 0;
  return total;
}

void Container::check_section(size_t index) const {
  const Section& section = sections[index];
  if (sha256(section_data(section), section.size) != section.digest) {
    fail(SVDQ_ALTERED, "open", path,
         str("the ", section.kind, " section at offset ", section.offset,
             " does not match its checksum"),
         kCopyAgain);
  }
}

Container open_container(const std::string& path) {
  Container container;
  container.path = path;
  container.file = std::make_unique<FileMap>(path);
  const FileMap& file = *container.file;
  const uint64_t manifest_size = check_header(path, file);
  const uint64_t manifest_end = kHeaderBytes + manifest_size;
  container.manifest_text.assign(reinterpret_cast<const char*>(file.data() + kHeaderBytes),
                                 manifest_size);
  const Digest digest = sha256(container.manifest_text.data(), manifest_size);
  if (std::memcmp(digest.data(), file.data() + 0x20, digest.size()) != 0) {
    fail(SVDQ_ALTERED, "open", path, "the manifest does not match its checksum", kCopyAgain);
  }
  container.manifest = parse_json(container.manifest_text, path);
  const Json& root = container.manifest;
  const ManifestReader reader(path, file.size());
  if (root.kind != Json::Kind::object) reader.bad("", "not an object");
  reader.versions(root);
  for (const char* key : {"name", "producer", "source_digest"}) reader.text(root, "", key);
  for (const char* key : {"quantization", "meta"}) reader.field(root, "", key, Json::Kind::object);
  container.sections = reader.sections(root, manifest_end);
  container.tensors = reader.tensors(root, container.sections);
  container.variants = reader.variants(root, container.sections);
  container.dims = reader.dims(root);
  container.inputs = reader.ports(root, "inputs");
  container.outputs = reader.ports(root, "outputs");
  check_zero_padding(container, manifest_end);
  return container;
}

}  // namespace svdq
