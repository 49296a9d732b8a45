#include "ops/cpu/pack.h"

#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <vector>

namespace dlf::ops {
namespace {

constexpr int64_t kQuad = 4;  // inputs of a channel that lie side by side

void check(const PackedMatrix& packed) {
  const at::Tensor& values = packed.values;
  TORCH_CHECK_VALUE(values.dim() == 2 && (values.scalar_type() == at::kChar || values.scalar_type() == at::kByte),
                    "packed values must be int8 or uint8 [out, in]");
  TORCH_CHECK_VALUE(packed.bits >= 1 && packed.bits <= 8 && packed.group >= 0 && packed.block >= 0,
                    "packed values must have 1 to 8 bits");
  TORCH_CHECK_VALUE(!packed.zero.defined() || (!packed.minimum.defined() && packed.block == 0),
                    "no tiles have zero points beside a minimum or scales with two levels");
  TORCH_CHECK_VALUE(packed.block == 0 || packed.block_scale.defined(), "a block of scales must have a block_scale");
  for (const at::Tensor* part : {&packed.scale, &packed.minimum, &packed.zero}) {
    const int64_t groups = packed.group > 0 ? (values.size(1) + packed.group - 1) / packed.group : 1;
    TORCH_CHECK_VALUE(!part->defined() || part->sizes() == at::IntArrayRef({values.size(0), groups}),
                      "packed scales, minimums and zero points must be [out, groups]");
  }
  for (const at::Tensor* part : {&packed.block_scale, &packed.block_minimum}) {
    const int64_t blocks = packed.block > 0 ? (values.size(1) + packed.block - 1) / packed.block : 0;
    TORCH_CHECK_VALUE(!part->defined() || part->sizes() == at::IntArrayRef({values.size(0), blocks}),
                      "packed block_scale and block_minimum must be [out, blocks]");
  }
}

// Lays out the values of one tile, which `at` returns unsigned, or signed for int8, as 4 inputs of a channel.
template <typename Quads>
void lay_out(MatrixType type, int64_t padded, uint8_t* to, Quads&& at) {
  const auto put = [&](uint32_t word) {
    std::memcpy(to, &word, kQuad);
    to += kQuad;
  };
  const auto for_channels = [](auto&& body) {
    for (int64_t channel = 0; channel < kTileOutputs; ++channel) {
      body(channel);
    }
  };
  if (type == MatrixType::int8) {
    for (int64_t i = 0; i < padded; i += kQuad) {
      for_channels([&](int64_t channel) { put(at(channel, i)); });
    }
  } else if (type == MatrixType::int4) {
    for (int64_t i = 0; i < padded; i += 2 * kQuad) {
      for_channels([&](int64_t channel) { put(at(channel, i) | at(channel, i + kQuad) << 4); });
    }
  } else {
    constexpr uint32_t kLow = 0x0f0f0f0fU;
    for (int64_t first = 0; first < padded; first += kInputGroup) {
      const auto low = [&](int64_t channel, int64_t quad) { return at(channel, first + quad * kQuad); };
      const auto high = [&](int64_t channel, int64_t quad) { return at(channel, first + kHalfGroup + quad * kQuad); };
      for (int64_t quad = 0; quad < 4; ++quad) {
        for_channels([&](int64_t channel) { put((low(channel, quad) & kLow) | (high(channel, quad) & kLow) << 4); });
      }
      for (int64_t quad = 0; quad < 4; quad += 2) {
        for_channels([&](int64_t channel) {
          const auto top = [](uint32_t word) { return word >> 4 & 0x03030303U; };
          put(top(low(channel, quad)) | top(high(channel, quad)) << 2 | top(low(channel, quad + 1)) << 4 |
              top(high(channel, quad + 1)) << 6);
        });
      }
    }
  }
}

at::Tensor pack_values(const PackedMatrix& packed, MatrixType type, int64_t padded, ThreadTeam& team) {
  const at::Tensor values = packed.values.contiguous();
  const bool is_signed = values.scalar_type() == at::kChar;
  const int64_t out = values.size(0);
  const int64_t in = values.size(1);
  const int64_t count = tiles(out);
  // Added to the bytes of the file: makes them unsigned, or signed for int8 with zero points.
  const int shift = type != MatrixType::int8              ? (is_signed ? middle(type) : 0)
                    : !is_signed && packed.zero.defined() ? -128
                                                          : 0;
  const int half = 1 << (packed.bits - 1);
  const int lowest = is_signed ? -half : 0;
  int highest = is_signed ? half - 1 : 2 * half - 1;
  if (type == MatrixType::int8 && shift == 0) {
    highest = std::min(highest, 127);
  }
  at::Tensor data = type == MatrixType::int8 ? at::zeros({count, padded / 4, kTileOutputs, 4}, at::kChar)
                    : type == MatrixType::int4
                        ? at::zeros({count, padded / 8, kTileOutputs, 4}, at::kByte)
                        : at::zeros({count, padded / kInputGroup, 6, kTileOutputs * 4}, at::kByte);
  const auto* from = static_cast<const uint8_t*>(values.const_data_ptr());
  auto* to = static_cast<uint8_t*>(data.mutable_data_ptr());
  const auto tile_bytes = static_cast<int64_t>(data.nbytes()) / std::max(count, int64_t{1});
  std::atomic<bool> in_range = true;
  team.parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> rows(kTileOutputs * padded);
    for (int64_t tile = begin; tile < end; ++tile) {
      std::fill(rows.begin(), rows.end(), static_cast<uint8_t>(type == MatrixType::int8 ? 0 : shift));
      bool inside = true;
      for (int64_t channel = 0; channel < kTileOutputs && tile * kTileOutputs + channel < out; ++channel) {
        const uint8_t* row = from + (tile * kTileOutputs + channel) * in;
        uint8_t* shifted = &rows[channel * padded];
        for (int64_t i = 0; i < in; ++i) {
          const int value = is_signed ? static_cast<int8_t>(row[i]) : row[i];
          inside &= value >= lowest && value <= highest;
          shifted[i] = static_cast<uint8_t>(value + shift);
        }
      }
      if (!inside) {
        in_range = false;
      }
      lay_out(type, padded, to + tile * tile_bytes, [&](int64_t channel, int64_t i) {
        uint32_t word = 0;
        std::memcpy(&word, &rows[channel * padded + i], kQuad);
        return word;
      });
    }
  });
  TORCH_CHECK_VALUE(in_range, "packed values of ", packed.bits, " bits must be from ", lowest, " to ", highest);
  return data;
}

// Lays out one number for each group or block, [out, count] in the file, as [tiles, padded count, 16].
at::Tensor pack_groups(const at::Tensor& from, int64_t count, const char* name) {
  TORCH_CHECK_VALUE(!from.is_floating_point() || from.isfinite().all().item<bool>(), "packed ", name,
                    " has numbers that are not finite");
  const int64_t out = from.size(0);
  at::Tensor padded = at::zeros({tiles(out) * kTileOutputs, count}, from.options());
  padded.narrow(0, 0, out).narrow(1, 0, from.size(1)).copy_(from);
  return padded.view({tiles(out), kTileOutputs, count}).transpose(1, 2).contiguous();
}

// Converts to a type that holds fewer numbers, and checks that they are the same.
at::Tensor exactly(const at::Tensor& from, at::ScalarType type, const char* name) {
  at::Tensor converted = from.to(type);
  TORCH_CHECK_VALUE(converted.to(at::kDouble).equal(from.to(at::kDouble)), "packed ", name, " has numbers that ", type,
                    " does not hold");
  return converted;
}

}  // namespace

MatrixType tile_type(int bits, int64_t group, bool is_signed, bool has_minimum) {
  const bool narrow = !(is_signed && has_minimum);
  const bool whole = group == 0 || (group >= kInputGroup && std::has_single_bit(static_cast<uint64_t>(group)));
  const bool fine = whole || group == kHalfGroup;
  return narrow && fine && bits <= 4   ? MatrixType::int4
         : narrow && fine && bits <= 6 ? MatrixType::int6
         : whole && bits <= 8          ? MatrixType::int8
                                       : MatrixType::float32;
}

Tiles pack(const PackedMatrix& packed, ThreadTeam& team) {
  check(packed);
  const bool is_signed = packed.values.scalar_type() == at::kChar;
  const MatrixType type = tile_type(packed.bits, packed.group, is_signed, packed.minimum.defined());
  TORCH_CHECK_VALUE(is_quantized(type), "no tiles hold values of ", packed.bits, " bits in groups of ", packed.group,
                    "; groups have 32, 64, 128, ... inputs");
  const int64_t in = packed.values.size(1);
  const int64_t padded = padded_inputs(in, packed.block > 0 ? packed.block : packed.group);
  const int64_t groups = packed.group > 0 ? padded / packed.group : 1;
  const bool two_levels = packed.block > 0;
  PackedMatrix with_zero = packed;
  if (!is_signed && !packed.zero.defined() && !packed.minimum.defined()) {
    TORCH_CHECK_VALUE(!two_levels, "packed values with scales on two levels must be signed, or have a minimum");
    with_zero.zero = at::zeros(packed.scale.sizes(), at::kInt);
  }
  Tiles result;
  result.data = pack_values(with_zero, type, padded, team);
  result.scale = pack_groups(two_levels ? exactly(packed.scale, at::kChar, "scale") : packed.scale, groups, "scale");
  if (with_zero.zero.defined()) {
    const int shift = type == MatrixType::int8 ? (is_signed ? 0 : -128) : (is_signed ? middle(type) : 0);
    result.minimum = pack_groups(exactly(with_zero.zero.to(at::kInt).add(shift), at::kChar, "zero"), groups, "zero");
  } else if (packed.minimum.defined()) {
    result.minimum =
        pack_groups(two_levels ? exactly(packed.minimum, at::kChar, "minimum") : packed.minimum, groups, "minimum");
  }
  if (two_levels) {
    const int64_t blocks = padded / packed.block;
    result.block_scale = pack_groups(exactly(packed.block_scale, at::kHalf, "block_scale"), blocks, "block_scale");
    if (packed.block_minimum.defined()) {
      result.block_minimum =
          pack_groups(exactly(packed.block_minimum, at::kHalf, "block_minimum"), blocks, "block_minimum");
    }
  }
  if (packed.group == 0) {
    for (at::Tensor* part : {&result.scale, &result.minimum}) {
      *part = part->defined() ? part->squeeze(1) : *part;
    }
  }
  matrix_of(result, packed.values.size(0), in, "packed");  // checks that the parts fit together
  return result;
}

}  // namespace dlf::ops
