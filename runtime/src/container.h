// The artifact's envelope: header, manifest, sections (runtime/FORMAT.md). Nothing here runs or
// interprets code.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"
#include "sha256.h"

namespace svdq {

constexpr uint16_t kContainerMajor = 1, kContainerMinor = 0;
constexpr uint32_t kQuantizationVersion = 2;
constexpr uint64_t kSectionAlignment = 4096, kTensorAlignment = 256;

// A file mapped for reading, for as long as this lives.
class FileMap {
 public:
  explicit FileMap(const std::string& path);
  ~FileMap();
  FileMap(const FileMap&) = delete;
  FileMap& operator=(const FileMap&) = delete;

  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
};

struct Section {
  std::string kind;  // "weights", "code", "plan", "graph"
  uint64_t offset;
  uint64_t size;
  Digest digest;
};

struct TensorEntry {
  std::string name;
  uint64_t offset;  // in the file
  uint64_t size;
};

struct ManifestDim {
  std::string name;
  int64_t lo, hi, multiple;
};

struct ManifestPort {
  std::string name, dtype;
  std::vector<int64_t> shape;  // -1 where the size is an expression
};

struct Variant {
  std::string target;
  std::vector<std::string> isa_features;
  size_t code, plan;  // indices of sections
};

struct Container {
  std::string path;
  std::unique_ptr<FileMap> file;
  std::string manifest_text;  // a private copy: what was hashed is what was parsed
  Json manifest;
  std::vector<Section> sections;
  std::vector<TensorEntry> tensors;
  std::vector<Variant> variants;
  std::vector<ManifestDim> dims;
  std::vector<ManifestPort> inputs, outputs;

  const uint8_t* section_data(const Section& section) const {
    return file->data() + section.offset;
  }
  uint64_t weight_bytes() const;
  // Throws SVDQ_ALTERED unless the section's bytes have the hash of the manifest.
  void check_section(size_t index) const;
};

// Maps the file; checks the header, the manifest's hash, every rule about the manifest and the
// section table, and that there are only zeros between sections. Sections' own hashes are left to
// `check_section`.
Container open_container(const std::string& path);

}  // namespace svdq
