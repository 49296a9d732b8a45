#include <cmath>

#include "ops/cpu/attention.h"
#include "ops/cpu/row_blocks.h"
#include "ops/cpu/softcap.h"
#include "ops/cpu/units.h"

// Attention of many queries in tiles (FlashAttention, Dao et al., arXiv 2205.14135): a few queries meet one block of
// keys at a time, and their sums stay in registers. A query's blocks begin at fixed positions and each of its sums has
// a fixed order, so its result does not depend on the tile, nor on the pass, that it is computed in.
namespace dlf::ops::DLF_CPU {
namespace {

constexpr int64_t kLanes = Vec::size();
constexpr int64_t kBlock = kCacheBlock;
// Queries, and registers of keys or values, that one product multiplies: its sums fill the registers.
constexpr int64_t kTile = kLanes == 16 ? 12 : 6;
constexpr int64_t kWide = 2;
static_assert(kBlock % (kWide * kLanes) == 0);

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a < b ? b : a; }
constexpr int64_t units(int64_t values, int64_t of) { return (values + of - 1) / of; }

// The running softmax of one query. Each lane adds up the weights of its positions.
struct RunningSoftmax {
  float maximum;
  float totals[kLanes];
};
static_assert(sizeof(RunningSoftmax) <= kPrefillSoftmax * sizeof(float));

// A block of the cache.
struct Block {
  const Unit* keys;    // [head_dim in units, kBlock]
  const Unit* values;  // [kBlock in units, stride]
  int64_t key_units;
  int64_t stride;  // head_dim, in whole registers
};

// R queries that lie side by side.
template <int64_t R>
struct Tile {
  const Unit* q;             // [head_dim in units, R]
  float* sums;               // [R, stride]
  RunningSoftmax* softmax;   // [R]
  int64_t low[R], high[R];   // positions of the block that each sees
  int64_t lowest, highest;   // any sees
  int64_t common, disjoint;  // all see
  float rescale[R];
  alignas(64) float scores[R][kBlock];
  alignas(64) Unit weights[R][kBlock];
};

// scores = q · k, of all positions that a query of the tile sees and of some beside them.
template <typename Units, int64_t R>
void score(Tile<R>& tile, const Block& block) {
  for (int64_t first = tile.lowest / (kWide * kLanes) * kWide * kLanes; first < tile.highest; first += kWide * kLanes) {
    Vec sums[R][kWide];
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t part = 0; part < kWide; ++part) {
        sums[r][part] = Vec(0.0F);
      }
    }
    const Unit* keys = block.keys + first;
    const Unit* q = tile.q;
    for (int64_t i = 0; i < block.key_units; ++i, keys += kBlock, q += R) {
      typename Units::Register k[kWide];
      for (int64_t part = 0; part < kWide; ++part) {
        k[part] = Units::load(keys + part * kLanes);
      }
      for (int64_t r = 0; r < R; ++r) {
        const typename Units::Register value = Units::broadcast(q[r]);
        for (int64_t part = 0; part < kWide; ++part) {
          sums[r][part] = Units::multiply_add(value, k[part], sums[r][part]);
        }
      }
    }
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t part = 0; part < kWide; ++part) {
        sums[r][part].store(tile.scores[r] + first + part * kLanes);
      }
    }
  }
}

// Turns the scores [low, high) of a query into weights relative to the largest so far, and those beside them, up to
// whole registers of units, into 0. Returns the factor for earlier sums.
template <typename Units>
float soften(float* scores, Unit* weights, int64_t low, int64_t high, RunningSoftmax& softmax) {
  constexpr int64_t kStep = Units::kValues * kLanes;
  const int64_t begin = low / kStep * kStep;
  const int64_t end = (high + kStep - 1) / kStep * kStep;
  for (int64_t j = begin; j < low; ++j) {
    scores[j] = -INFINITY;
  }
  for (int64_t j = high; j < end; ++j) {
    scores[j] = -INFINITY;
  }
  Vec largest(softmax.maximum);
  for (int64_t j = begin; j < end; j += kLanes) {
    largest = at::vec::maximum(largest, Vec::loadu(scores + j));
  }
  const float maximum = at::vec::vec_reduce_all<float>([](Vec a, Vec b) { return at::vec::maximum(a, b); }, largest);
  // Is NaN if both are infinite.
  const float rescale = maximum - softmax.maximum == 0.0F ? 1.0F : std::exp(softmax.maximum - maximum);
  softmax.maximum = maximum;
  Vec total = Vec::loadu(softmax.totals) * Vec(rescale);
  for (int64_t j = begin; j < end; j += kStep) {
    Vec parts[Units::kValues];
    for (int64_t part = 0; part < Units::kValues; ++part) {
      parts[part] = (Vec::loadu(scores + j + part * kLanes) - Vec(maximum)).exp();
    }
    Units::join(parts, weights + j / Units::kValues);
    for (int64_t part = 0; part < Units::kValues; ++part) {
      total = total + parts[part];
    }
  }
  total.store(softmax.totals);
  return rescale;
}

// The bits of a unit of positions that are in [low, high).
template <typename Units>
Unit seen(int64_t low, int64_t high, int64_t unit) {
  Unit bits = 0;
  for (int64_t i = 0; i < Units::kValues; ++i) {
    const int64_t position = unit * Units::kValues + i;
    bits |= low <= position && position < high ? Units::kValueBits << (16 * i) : 0;
  }
  return bits;
}

// sums = sums * rescale + Σ weights[j] * values[j], from element `first` on. Leaves out what a query does not see, even
// if its weight is 0: it may be infinite.
template <typename Units, int64_t R, int64_t Vectors>
void average(Tile<R>& tile, const Block& block, int64_t first) {
  Vec sums[R][Vectors];
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t part = 0; part < Vectors; ++part) {
      sums[r][part] = Vec::loadu(tile.sums + r * block.stride + first + part * kLanes) * Vec(tile.rescale[r]);
    }
  }
  const auto add = [&]<bool All>(int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      typename Units::Register v[Vectors];
      for (int64_t part = 0; part < Vectors; ++part) {
        v[part] = Units::load(block.values + unit * block.stride + first + part * kLanes);
      }
      for (int64_t r = 0; r < R; ++r) {
        const Unit bits = All ? 0 : seen<Units>(tile.low[r], tile.high[r], unit);
        if (All || bits != 0) {
          const typename Units::Register weight = Units::broadcast(tile.weights[r][unit]);
          for (int64_t part = 0; part < Vectors; ++part) {
            sums[r][part] = Units::multiply_add(weight, All ? v[part] : Units::keep(v[part], bits), sums[r][part]);
          }
        }
      }
    }
  };
  const int64_t end = units(tile.highest, Units::kValues);
  int64_t common = units(tile.common, Units::kValues);
  int64_t disjoint = tile.disjoint / Units::kValues;
  if (common >= disjoint) {
    common = disjoint = end;
  }
  add.template operator()<false>(tile.lowest / Units::kValues, common);
  add.template operator()<true>(common, disjoint);
  add.template operator()<false>(disjoint, end);
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t part = 0; part < Vectors; ++part) {
      sums[r][part].store(tile.sums + r * block.stride + first + part * kLanes);
    }
  }
}

template <typename Units, int64_t R>
void attend(Tile<R>& tile, const Block& block, float softcap) {
  score<Units>(tile, block);
  for (int64_t r = 0; r < R; ++r) {
    tile.rescale[r] = 1.0F;
    if (tile.low[r] < tile.high[r]) {
      if (softcap > 0.0F) {
        cap(tile.scores[r], tile.low[r], tile.high[r], softcap);
      }
      tile.rescale[r] = soften<Units>(tile.scores[r], tile.weights[r], tile.low[r], tile.high[r], tile.softmax[r]);
    }
  }
  int64_t i = 0;
  for (; i + kWide * kLanes <= block.stride; i += kWide * kLanes) {
    average<Units, R, kWide>(tile, block, i);
  }
  for (; i < block.stride; i += kLanes) {
    average<Units, R, 1>(tile, block, i);
  }
}

// All query heads of one key-value head for kPrefillRows rows, which read each block of the cache together.
template <typename Units>
class Item {
 public:
  Item(const AttentionArgs& args, int64_t kv_head, int64_t first_row, uint32_t* scratch)
      : args_(args),
        dim_(args.head_dim),
        key_units_(units(dim_, Units::kValues)),
        stride_(units(dim_, kLanes) * kLanes),
        group_(args.heads / args.kv_heads),
        kv_head_(kv_head),
        first_row_(first_row),
        end_row_(least(first_row + kPrefillRows, args.places.rows)),
        queries_((end_row_ - first_row) * group_),
        keys_(scratch),
        values_(keys_ + kBlock * key_units_),
        q_(values_ + kBlock * stride_),
        sums_(reinterpret_cast<float*>(q_ + queries_ * key_units_)),
        softmax_(reinterpret_cast<RunningSoftmax*>(sums_ + queries_ * stride_)) {}

  void attend() {
    for_row_blocks<kTile>(queries_, [&]<int64_t R>(int64_t query) { gather<R>(query); });
    for (int64_t i = 0; i < queries_ * stride_; ++i) {
      sums_[i] = 0.0F;
    }
    for (int64_t query = 0; query < queries_; ++query) {
      softmax_[query] = {-INFINITY, {}};
    }
    const int64_t last = position_of(end_row_ - 1) + 1;
    for (int64_t first = first_seen(position_of(first_row_)) / kBlock * kBlock; first < last; first += kBlock) {
      unpack(first, least(last - first, kBlock));
      for_row_blocks<kTile>(queries_, [&]<int64_t R>(int64_t query) { attend<R>(query, first); });
    }
    for (int64_t query = 0; query < queries_; ++query) {
      write(query);
    }
  }

 private:
  int64_t row_of(int64_t query) const { return first_row_ + query / group_; }
  int64_t head_of(int64_t query) const { return kv_head_ * group_ + query % group_; }
  int64_t position_of(int64_t row) const { return args_.places.position_of(static_cast<int>(row)); }
  int64_t first_seen(int64_t position) const {
    return args_.window > 0 && position >= args_.window ? position - args_.window + 1 : 0;
  }

  // Lays out R queries, times the scale.
  template <int64_t R>
  void gather(int64_t query) {
    for (int64_t r = 0; r < R; ++r) {
      const float* from =
          static_cast<const float*>(args_.q) + row_of(query + r) * args_.q_stride + head_of(query + r) * dim_;
      for (int64_t i = 0; i < dim_; i += Units::kValues) {
        const int64_t count = least(dim_ - i, Units::kValues);
        float scaled[Units::kValues];
        for (int64_t part = 0; part < count; ++part) {
          scaled[part] = from[i + part] * args_.scale;
        }
        q_[query * key_units_ + i / Units::kValues * R + r] = Units::join(scaled, count);
      }
    }
  }

  // Lays out the positions [first, first + count) of the cache.
  void unpack(int64_t first, int64_t count) {
    using Element = typename Units::Element;
    const int64_t cache =
        cache_offset(args_.table.block_of(args_.places.slot_of(0), first), kv_head_, args_.kv_heads, dim_);
    const Element* k = static_cast<const Element*>(args_.k_cache) + cache;
    const Element* v = static_cast<const Element*>(args_.v_cache) + cache;
    for (int64_t i = 0; i < dim_; i += Units::kValues) {
      Units::join(k + i * kBlock, dim_ - i, kBlock, keys_ + i / Units::kValues * kBlock);
    }
    for (int64_t j = 0; j < count; j += Units::kValues) {
      Unit* to = values_ + j / Units::kValues * stride_;
      Units::join(v + j * dim_, count - j, dim_, to);
      for (int64_t i = dim_; i < stride_; ++i) {
        to[i] = 0;
      }
    }
  }

  // Attends from R queries to the block at position `first`.
  template <int64_t R>
  void attend(int64_t query, int64_t first) {
    Tile<R> tile;
    tile.q = q_ + query * key_units_;
    tile.sums = sums_ + query * stride_;
    tile.softmax = softmax_ + query;
    tile.lowest = tile.disjoint = kBlock;
    tile.highest = tile.common = 0;
    for (int64_t r = 0; r < R; ++r) {
      const int64_t position = position_of(row_of(query + r));
      const int64_t low = tile.low[r] = most(first_seen(position) - first, 0);
      const int64_t high = tile.high[r] = least(position + 1 - first, kBlock);
      tile.lowest = least(tile.lowest, low < high ? low : kBlock);
      tile.highest = most(tile.highest, low < high ? high : 0);
      tile.common = most(tile.common, low);
      tile.disjoint = least(tile.disjoint, most(high, 0));
    }
    if (tile.lowest < tile.highest) {
      DLF_CPU::attend<Units>(tile, {keys_, values_, key_units_, stride_}, args_.softcap);
    }
  }

  void write(int64_t query) {
    float total = 0.0F;
    for (const float lane : softmax_[query].totals) {
      total += lane;
    }
    float* y = static_cast<float*>(args_.y) + (row_of(query) * args_.heads + head_of(query)) * dim_;
    for (int64_t i = 0; i < dim_; ++i) {
      y[i] = sums_[query * stride_ + i] / total;
    }
  }

  const AttentionArgs& args_;
  int64_t dim_, key_units_, stride_, group_, kv_head_, first_row_, end_row_, queries_;
  Unit *keys_, *values_, *q_;
  float* sums_;
  RunningSoftmax* softmax_;
};

}  // namespace

void prefill_attention_kernel(const AttentionArgs& args, uint32_t* scratch, int64_t begin, int64_t end) {
  const int64_t chunks = (args.places.rows + kPrefillRows - 1) / kPrefillRows;
  for (int64_t i = begin; i < end; ++i) {
    if (args.dtype == DType::float32) {
      Item<Singles<float>>(args, i / chunks, i % chunks * kPrefillRows, scratch).attend();
    } else {
      Item<BFloat16Units>(args, i / chunks, i % chunks * kPrefillRows, scratch).attend();
    }
  }
}

}  // namespace dlf::ops::DLF_CPU
