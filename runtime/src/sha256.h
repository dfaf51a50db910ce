// SHA-256 (FIPS 180-4), with the SHA instructions of x86 where the CPU has them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace svdq {

using Digest = std::array<uint8_t, 32>;

Digest sha256(const void* data, size_t num_bytes);
std::string to_hex(const Digest& digest);
// 64 lower-case hexadecimal characters; false otherwise.
bool from_hex(const char* text, size_t length, Digest* digest);

// For tests: the portable code, whatever the CPU.
Digest sha256_portable(const void* data, size_t num_bytes);

}  // namespace svdq
