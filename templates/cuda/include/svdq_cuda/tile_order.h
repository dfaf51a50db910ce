// tile_order.h: in which order the tiles of a result are computed.
//
//   TileOrder<BM, BN, BAND>(rows, columns)   of the result; tiles of BM x BN
//     tiles                                  how many there are
//     place(number)                          where a tile begins; number < tiles
//
// Down bands of BAND tiles, column by column: the tiles that a GPU computes at a time are then
// neighbours in both directions, and share the rows and columns that they read in the second-level
// cache (codegen/cuda/tiles.py says how high a band is best).
#ifndef SVDQ_CUDA_TILE_ORDER_H
#define SVDQ_CUDA_TILE_ORDER_H

#include "svdq_cuda/intrinsics.h"

namespace svdq {

struct TilePlace {
  int64_t row, column;
};

template <int BM, int BN, int BAND>
struct TileOrder {
  uint32_t row_tiles, column_tiles, tiles;

  SVDQ_METHOD TileOrder(int64_t rows, int64_t columns)
      : row_tiles(static_cast<uint32_t>(ceil_div(rows, BM))),
        column_tiles(static_cast<uint32_t>(ceil_div(columns, BN))),
        tiles(row_tiles * column_tiles) {}

  SVDQ_METHOD TilePlace place(uint32_t number) const {
    const uint32_t in_band = BAND * column_tiles, first = number / in_band * BAND;
    const uint32_t left = row_tiles - first, height = left < BAND ? left : BAND;
    const uint32_t at = number % in_band, column = divide(at, height);
    return {int64_t{first + at - column * height} * BM, int64_t{column} * BN};
  }
};

}  // namespace svdq

#endif  // SVDQ_CUDA_TILE_ORDER_H
